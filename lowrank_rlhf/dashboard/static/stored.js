// Reads or writes the browser's storage: null where it is blocked or full, which must not stop the page.
const stored = (act) => { try { return act(localStorage); } catch (error) { console.error(error); return null; } };
