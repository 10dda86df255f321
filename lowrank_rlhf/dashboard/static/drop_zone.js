// Sends a chosen or dropped file, and triggers `select` with the status and the answer: a name, or what is wrong.
const send = async (file) => {
  if (!file) return;
  let status = large, answer = file.name;
  if (file.size <= most) {
    try {
      const response = await fetch(address + encodeURIComponent(file.name), {method: 'POST', body: file});
      [status, answer] = [response.status, await response.text()];
    } catch (error) {
      [status, answer] = [0, ''];  // the server cannot be reached
    }
  }
  trigger('select', {index: status, value: answer});
};
element.addEventListener('change', (event) => {
  if (event.target.type !== 'file') return;
  send(event.target.files[0]);
  event.target.value = '';
});
element.addEventListener('click', (event) => {
  if (event.target.type !== 'button') return;
  event.preventDefault();
  trigger('select', {index: removed, value: ''});
});
const over = (event, on) => {
  event.preventDefault();
  element.querySelector('.drop').classList.toggle('over', on);
};
element.addEventListener('dragover', (event) => over(event, true));
element.addEventListener('dragleave', (event) => over(event, false));
element.addEventListener('drop', (event) => {
  over(event, false);
  send(event.dataTransfer.files[0]);
});
