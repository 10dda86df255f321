// Sends the annotator's keys, clicks and drags to the server one by one and draws its replies. The server interprets
// them (preferences/labelling.py). Runs after ranking_draw.js, in one function with it.

// --- to the server and back ---

function request(step) {
  const item = screen && screen.item;
  return {
    badge: props.value.badge, language: props.value.language,
    prompt_id: item ? item.prompt_id : null, done: item ? item.done : 0,
    keys: screen ? screen.keys : [], flags: screen ? screen.flags : [], written: item ? writing.value : '',
    guidelines: guidelines ? guidelines.version : '',
    unread: item ? item.answers.map((_, place) => place).filter((place) => !read.has(place)) : [],
    seconds: seconds + (shownAt ? (performance.now() - shownAt) / 1000 : 0), ...step,
  };
}

// One step at a time. Keys typed ahead are dropped when the screen changes and after a refusal.
function send(step) {
  const meant = epoch;
  active = true;
  waiting += 1;
  root.ariaBusy = true;
  chain = chain.then(async () => {
    if (meant !== epoch || ended) return;
    const reply = await server.rank(request(step));
    if (meant !== epoch) return; // the annotator or the language has changed meanwhile
    if (reply && reply.error && !screen) refusedDraft = draftName();
    if (!reply || reply.error) { complain(reply ? reply.error : texts['error.gone']); return; }
    find('.rk-error').hidden = true;
    take(reply);
  }).catch((error) => { console.error(error); complain(texts['error.gone']); })
    .finally(() => { waiting -= 1; root.ariaBusy = waiting > 0; });
  return chain;
}

function complain(words) {
  epoch += 1;
  find('.rk-error span').textContent = words || 'No response from the server. Reload the page.';
  find('.rk-error').hidden = false;
}

function take(reply) {
  if ('item' in reply) {
    refusedDraft = '';
    const same = screen && screen.item && reply.item && screen.item.prompt_id === reply.item.prompt_id
      && screen.item.done === reply.item.done;
    if (!same) { epoch += 1; read = new Set(reply.read || readBefore(reply.item)); }
    screen = reply;
    drawScreen(same);
  } else if ('keys' in reply) {
    Object.assign(screen, reply);
  }
  if (reply.refused) epoch += 1;
  if (screen && screen.draft) drawDraft(reply.refused || '', reply.notice || '');
  keepDraft();
  if (reply.figures) drawFigures(reply.figures);
  if (reply.disputes) drawDisputes(reply.disputes, reply.disputes_note);
  if (reply.team) drawTeam(reply.team);
  if ('guidelines' in reply) drawGuidelines(reply.guidelines);
}

// --- an unsaved order and text, kept in this browser over a reload and another choice of run ---

const draftName = () => `lowrank-draft ${props.value.badge.run} ${props.value.badge.annotator}`;

function keepDraft() {
  if (!screen) return;
  const { item, keys, flags } = screen;
  const draft = item
    && { prompt_id: item.prompt_id, done: item.done, keys, flags, written: writing.value, read: [...read] };
  if (draft && (keys.length || flags.length || draft.written.trim()))
    stored((storage) => storage.setItem(draftName(), JSON.stringify(draft)));
  else stored((storage) => storage.removeItem(draftName()));
}

// It stays stored until a reply is accepted. Retry leaves out a refused one, of a run made again.
function takeDraft() {
  return (refusedDraft !== draftName() && stored((storage) => JSON.parse(storage.getItem(draftName())))) || {};
}

// Answers that were read before a reload.
function readBefore(item) {
  const draft = takeDraft();
  return item && draft.prompt_id === item.prompt_id && draft.done === item.done ? draft.read : [];
}

// --- keys, clicks, drags ---

function press(key) {
  if (key === 'h' || key === '?') { find('.rk-help').open = !find('.rk-help').open; return; }
  if (key === 'e' && !find('.rk-expand').hidden) { expand(); return; }
  if (key === 'g' && guidelines) { guide.open = !guide.open; return; }
  if (key === 'w' && screen.item) { writing.focus(); return; }
  send({ do: 'key', key: key === 'Enter' ? '\r' : key === 'Backspace' ? '\b' : key });
}

function onKey(event) {
  if (!element.isConnected) { stop(); return; }
  if (event.isComposing || event.repeat || !screen || !root.getClientRects().length) return;
  const where = event.target instanceof Element ? event.target : document.body;
  if (where === writing) {
    if (event.key === 'Escape') writing.blur();
    else if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) { event.preventDefault(); press('Enter'); }
    return;
  }
  if (where.closest('input:not([type="radio"], [type="checkbox"]), textarea, select, [contenteditable]')) return;
  const graphic = event.getModifierState('AltGraph');
  if (event.metaKey || ((event.ctrlKey || event.altKey) && !graphic)) return;
  if (event.key !== 'Enter' && event.key !== 'Backspace' && (event.key.length !== 1 || event.key === ' ')) return;
  const control = where.closest('button, a, summary, [role="tab"], [role="button"]');
  if (event.key === 'Enter' && control && (!element.contains(control) || control.matches(':focus-visible'))) return;
  if (event.key === 'q' || event.key === 'Q') return; // quits the terminal labeller; here one closes the tab
  event.preventDefault();
  press(event.key);
}

const tiersNow = () => screen.draft.tiers.map((tier) => [...tier]);
const without = (tiers, answer) => tiers.map((tier) => tier.filter((other) => other !== answer));

function onClick(event) {
  const button = event.target.closest('button');
  if (button && event.detail) button.blur(); // a mouse leaves no focus behind that would catch Enter
  if (button && button.dataset.do) return act(button.dataset.do);
  if (button && button.dataset.key) return press(button.dataset.key);
  const node = event.target.closest('[data-answer]');
  if (!node || !screen || !screen.item || String(window.getSelection())) return;
  const answer = Number(node.dataset.answer);
  if (screen.draft.left.includes(answer)) send({ do: 'key', key: LABELS[answer] });
  else send({ do: 'arrange', tiers: without(tiersNow(), answer) });
}

// A mouse leaves no focus on a tab either: Enter, typed after a click on tab Rank, would open the tab again.
function onTab(event) {
  const tab = event.detail && event.target.closest('[role="tab"]');
  if (tab) tab.blur();
}

function act(action) {
  if (action === 'resume') trigger('resume', {});
  else { find('.rk-error').hidden = true; start(); }
}

let dragged = null;
function onDrag(event) {
  const node = event.target.closest && event.target.closest('[data-answer]');
  if (event.type === 'dragstart') {
    dragged = node ? Number(node.dataset.answer) : null;
    if (node) { event.dataTransfer.setData('text/plain', LABELS[dragged]); event.dataTransfer.effectAllowed = 'move'; }
    root.classList.toggle('rk-dragging', !!node);
    return;
  }
  if (event.type === 'dragend') { dragged = null; root.classList.remove('rk-dragging'); mark(null); return; }
  const goal = dragged === null ? null : event.target.closest('.rk-gap, .rk-tier, .rk-lane, .rk-card.rk-placed');
  if (!goal) { mark(null); return; }
  event.preventDefault();
  if (event.type === 'dragover') { mark(goal); return; }
  drop(dragged, goal);
}

function mark(goal) {
  for (const node of element.querySelectorAll('.rk-over')) if (node !== goal) node.classList.remove('rk-over');
  if (goal) goal.classList.add('rk-over');
}

// On a gap: a new place there. On a tier or a placed card: equal to it. Elsewhere on the lane: last.
function drop(answer, goal) {
  const tiers = without(tiersNow(), answer);
  const card = goal.matches('.rk-card') ? Number(goal.dataset.answer) : null;
  if (card === answer) return;
  const tier = card === null ? goal.dataset.tier : screen.draft.tiers.findIndex((one) => one.includes(card));
  if (tier !== undefined) tiers[Number(tier)].push(answer);
  else tiers.splice(goal.dataset.gap === undefined ? tiers.length : Number(goal.dataset.gap), 0, [answer]);
  send({ do: 'arrange', tiers });
}

// --- beginning and end ---

function onHide() {
  if (document.hidden && shownAt) { seconds += (performance.now() - shownAt) / 1000; shownAt = 0; }
  if (!document.hidden && !shownAt) shownAt = performance.now();
}

function onBeat() {
  if (!element.isConnected) { stop(); return; }
  if (document.hidden || !screen || !root.getClientRects().length) return;
  if (!screen.item) send({ do: 'open' });
  else if (active) { active = false; server.rank(request({ do: 'renew' })); }
}

// The answers may be there by now.
function onLook() {
  if (!element.isConnected) { stop(); return; }
  if (props.value && props.value.problem && !document.hidden && root.getClientRects().length) trigger('reopen', {});
}

// The prompt and the tools stay in sight (position: sticky) only if nothing around them scrolls by itself.
function unclip() {
  for (let node = element.parentElement; node && node !== document.body; node = node.parentElement)
    if (/hidden|auto/.test(getComputedStyle(node).overflow) && node.scrollHeight <= node.clientHeight + 1)
      node.style.overflow = 'clip';
}

function onSign() { active = true; }

const listeners = [[document, 'keydown', onKey], [document, 'visibilitychange', onHide], [document, 'pointermove', onSign],
  [document, 'keydown', onSign], [element, 'click', onClick], [document, 'click', onTab]];
for (const kind of ['dragstart', 'dragover', 'dragend', 'drop']) listeners.push([element, kind, onDrag]);
for (const [target, kind, call] of listeners) target.addEventListener(kind, call);
const beats = [setInterval(onBeat, 20000), setInterval(onLook, 5000)];

function stop() {
  ended = true;
  beats.forEach(clearInterval);
  for (const [target, kind, call] of listeners) target.removeEventListener(kind, call);
}

new ResizeObserver(markLong).observe(find('.rk-answers')); // also when a tab becomes visible
writing.addEventListener('focus', drawTyping);
writing.addEventListener('input', keepDraft);
writing.addEventListener('blur', () => { drawTyping(); if (screen && screen.item) send({ do: 'open' }); });
guide.addEventListener('toggle', keepFold);
find('.rk-figures').addEventListener('toggle', () => { if (find('.rk-figures').open) send({ do: 'figures' }); });

function start() {
  if (!props.value || !props.value.badge) { root.hidden = true; return; }
  if (props.value.may_resume && !chosen) { // until the address's run is chosen (browser/address.py) and shown here
    window.addEventListener('run-known', start, { once: true });
    chosen = props.value.run === window.shownRun;
    if (!chosen) { root.hidden = true; return; }
  }
  root.hidden = false;
  texts = props.value.texts;
  drawTexts();
  if (props.value.may_resume) drawOwner();
  unclip();
  epoch += 1;
  if (whose !== props.value.badge.signature) {
    screen = guidelines = null;
    guide.hidden = find('.rk-item').hidden = true;
    find('.rk-line').replaceChildren(); // of the previous annotator or run
  }
  whose = props.value.badge.signature;
  find('.rk-error').hidden = true;
  root.classList.toggle('rk-nothing', !!props.value.problem);
  if (props.value.problem) { complain(props.value.problem); return; }
  const { read: _, ...draft } = screen ? {} : takeDraft(); // the server knows the unread answers only
  send({ do: 'open', ...draft });
}

watch('value', start);
start();
