// Draws the replies of the server: prompt, cards, order, figures. Texts of people and models go into text nodes only.
// Runs before ranking.js, in one function with it.
const LABELS = '123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ';
const find = (selector) => element.querySelector(selector);
const root = find('.rk');
const writing = find('.rk-write textarea');
const guide = find('.rk-guide');
let texts = {}, screen = null, chain = Promise.resolve(), epoch = 0, waiting = 0, active = true, ended = false;
let read = new Set(); // places of the answers whose end has been on the screen
let guidelines = null, shownAt = 0, seconds = 0, drawnIn = '', whose = '', refusedDraft = '';
let chosen = false; // the run of the page's address

function make(tag, name, text, properties) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return Object.assign(node, properties || {});
}

function put(key, values) {
  return (texts[key] || '').replace(/\{(\w+)\}/g, (whole, name) => (values && name in values ? values[name] : whole));
}

function drawTexts() {
  root.lang = props.value.language === 'zh' ? 'zh-Hans' : 'en';
  find('.rk-write-title').textContent = texts['write.title'];
  find('.rk-error button').textContent = texts['error.retry'];
  find('.rk-end h3').textContent = texts['end.title'];
  find('.rk-end p').textContent = texts['end.text'];
  label(find('.rk-help summary'), 'help.title', 'h');
  label(guide.querySelector('summary'), 'guide.title', 'g');
  find('.rk-help ul').replaceChildren(...[1, 2, 3, 4, 5, 6, 7].map((n) => make('li', '', texts[`help.${n}`])));
  find('.rk-figures summary').textContent = texts['figures.title'];
  const ends = element.querySelectorAll('.rk-end button');
  label(ends[0], 'end.skipped', 's'); label(ends[1], 'button.undo', 'u'); label(ends[2], 'button.again');
  const tools = [['save', 'Enter'], ['tie', '='], ['undo', 'u'], ['skip', 's'], ['bad', 'b'], ['harmful', '!'],
    ['flag', 'f'], ['write', 'w'], ['expand', 'e']];
  find('.rk-tools').replaceChildren(...tools.map(([name, key]) => {
    const button = label(make('button', `rk-${name}`), `button.${name}`, key);
    button.type = 'button';
    button.dataset.key = key;
    return button;
  }));
  find('.rk-flags').replaceChildren(...['1', '2', '3', '4'].map((key) => {
    const button = label(make('button'), `flag.${key}`, key);
    button.type = 'button';
    button.dataset.key = key;
    return button;
  }));
}

function label(button, name, key) {
  button.replaceChildren(make('span', '', texts[name]), ...(key ? [make('kbd', '', key === 'Enter' ? '↵' : key)] : []));
  if (key) button.setAttribute('aria-keyshortcuts', key);
  return button;
}

function drawScreen(same) {
  const { item, progress } = screen;
  find('.rk-item').hidden = !item;
  find('.rk-end').hidden = !!item;
  element.querySelector('.rk-end [data-key="s"]').hidden = !progress.skipped || !!progress.quota || !!screen.excluded;
  element.querySelector('.rk-end [data-key="u"]').hidden = !!screen.excluded;
  find('.rk-line').replaceChildren(...progress.line.map((part) => make('span', '', part)),
    make('span', 'rk-who', put('page.who', { name: props.value.badge.annotator })));
  find('.rk-bar i').style.width = `${100 * progress.share}%`;
  find('.rk-bar').setAttribute('aria-label', texts['page.progress']);
  find('.rk-bar').setAttribute('aria-valuenow', Math.round(100 * progress.share));
  find('.rk-bar').classList.toggle('rk-full', progress.sound);
  find('.rk-next span').textContent = progress.next;
  find('.rk-warnings').replaceChildren(...progress.warnings.map((words) => make('li', '', words)));
  find('[data-do="resume"]').textContent = texts[progress.finished ? 'button.train_again' : 'button.resume'];
  find('[data-do="resume"]').hidden = !(progress.enough && props.value.may_resume);
  if (!item || !same) { seconds = 0; shownAt = document.hidden ? 0 : performance.now(); }
  if (item && !(same && drawnIn === props.value.language)) drawItem(item, same);
  drawnIn = props.value.language;
  if (find('.rk-figures').open) send({ do: 'figures' });
}

function drawItem(item, same) {
  find('.rk-again').hidden = !item.done;
  find('.rk-again').textContent = texts.again;
  find('.rk-prompt').replaceChildren(...item.turns.map((turn) => {
    const row = make('div', `rk-turn rk-${turn.role}`);
    row.append(make('b', '', texts[`role.${turn.role}`]), prose(turn.text));
    return row;
  }));
  find('.rk-answers').replaceChildren(...item.answers.map(card));
  markLong();
  if (same) return;
  writing.value = screen.written;
  find('.rk-prompt').scrollTop = 0;
  if (root.getBoundingClientRect().top < 0) root.scrollIntoView({ block: 'start' });
}

function card(answer, index) {
  const node = make('li', 'rk-card', undefined, { draggable: true });
  node.dataset.answer = index;
  const head = make('div', 'rk-head');
  const badge = make('button', 'rk-badge', LABELS[index], { type: 'button' });
  badge.dataset.answer = index;
  head.append(badge, make('span', 'rk-place'), make('span', 'rk-unread', texts['card.unread'], { hidden: true }));
  const body = answer.text ? prose(answer.text) : make('div', 'rk-text rk-soft', texts['card.empty']);
  body.tabIndex = 0;
  body.addEventListener('scroll', markLong);
  node.append(head, body);
  if (!answer.finished) node.append(make('div', 'rk-soft', texts['card.cut']));
  return node;
}

// --- guidelines: open until they are folded, and again when they have changed ---

const foldName = () => `lowrank-guidelines ${props.value.badge.run}`;

function drawGuidelines(given) {
  guidelines = given;
  guide.hidden = !given;
  if (!given) { root.classList.remove('rk-beside'); return; }
  guide.querySelector('div').replaceChildren(...given.text.map(built));
  const [version, folded] = (stored((storage) => storage.getItem(foldName())) || '').split(' ');
  guide.open = !(folded && version === given.version);
  const summary = label(guide.querySelector('summary'), 'guide.title', 'g');
  if (version && version !== given.version) summary.append(make('span', 'rk-new', texts['guide.changed']));
  keepFold();
}

function keepFold() {
  if (!guidelines) return;
  root.classList.toggle('rk-beside', guide.open);
  stored((storage) => storage.setItem(foldName(), guidelines.version + (guide.open ? '' : ' folded')));
}

// An element of ranking/markdown.py, which names the tags that may occur.
function built(part) {
  if (typeof part === 'string') return document.createTextNode(part);
  const node = make(part.tag);
  if (part.href) Object.assign(node, { href: part.href, target: '_blank', rel: 'noopener noreferrer' });
  node.append(...part.inside.map(built));
  return node;
}

// A fade where an answer goes on below its box; the button that shows all of them whole, where there are any.
function markLong() {
  const button = find('.rk-expand');
  if (!button) return; // nothing is drawn yet
  const before = read.size;
  let long = root.classList.contains('rk-expanded');
  for (const body of element.querySelectorAll('.rk-card > .rk-text')) {
    const hidden = body.scrollHeight - body.clientHeight, below = hidden - body.scrollTop > 2;
    body.classList.toggle('rk-below', below);
    if (body.clientHeight && !below) read.add(Number(body.parentElement.dataset.answer));
    long = long || hidden > 2;
  }
  button.hidden = !long;
  if (read.size > before) { keepDraft(); markUnread(); }
}

// Once there is an order, the cards of answers whose end has not been on the screen say so.
function markUnread() {
  for (const node of element.querySelectorAll('.rk-card'))
    node.querySelector('.rk-unread').hidden = !screen.draft.tiers.length || read.has(Number(node.dataset.answer));
}

function expand() {
  find('.rk-expand').setAttribute('aria-pressed', root.classList.toggle('rk-expanded'));
  markLong();
}

// Keeps line breaks; shows text between ``` fences in a fixed width. No character is left out.
function prose(text) {
  const node = make('div', 'rk-text', undefined, { dir: 'auto' });
  let code = null;
  for (const line of text.split(/(?<=\n)/)) {
    if (/^\s*```/.test(line)) {
      if (code) { code.append(line); code = null; continue; }
      code = make('code', '', line);
      node.append(code);
    } else (code || node).append(line);
  }
  return node;
}

function drawDraft(refused, notice) {
  const { draft, item } = screen;
  if (!item) { find('.rk-end p').textContent = refused || screen.excluded || screen.progress.quota || notice || texts['end.text']; return; }
  const places = new Map();
  let place = 1;
  for (const tier of draft.tiers) {
    for (const answer of tier) places.set(answer, [place, tier.length > 1]);
    place += tier.length;
  }
  for (const node of element.querySelectorAll('.rk-card')) {
    const index = Number(node.dataset.answer), found = places.get(index);
    node.classList.toggle('rk-placed', !!found);
    node.classList.toggle('rk-best', !!found && found[0] === 1);
    node.querySelector('.rk-place').textContent = !found ? ''
      : (found[1] ? '= ' : '') + (found[0] === 1 ? texts['place.first'] : put('place.other', { n: found[0] }));
    const key = { key: LABELS[index] };
    node.querySelector('.rk-badge').setAttribute('aria-label', put(found ? 'card.remove' : 'card.place', key));
  }
  markUnread();
  drawLane(draft, item);
  const enter = find('.rk-enter');
  enter.textContent = refused || [notice, draft.enter].filter(Boolean).join(' · ');
  enter.classList.toggle('rk-refused', !!refused);
  find('.rk-flags').hidden = !draft.flagging;
  for (const [name, flag] of [['bad', '3'], ['harmful', '4']])
    find(`.rk-${name}`).setAttribute('aria-pressed', draft.flags.includes(flag));
  find('.rk-save').classList.toggle('rk-ready', draft.ready);
  drawTyping();
}

function drawLane(draft, item) {
  const lane = find('.rk-lane');
  lane.replaceChildren();
  lane.dataset.tied = draft.tied;
  if (!draft.tiers.length)
    lane.append(make('span', 'rk-soft', put('lane.empty', { first: '1', last: LABELS[item.answers.length - 1] })));
  draft.tiers.forEach((tier, at) => {
    lane.append(gap(at));
    const box = make('span', 'rk-tier');
    box.dataset.tier = at;
    tier.forEach((answer, inside) => {
      if (inside) box.append(make('i', '', '='));
      const chip = make('button', 'rk-chip', LABELS[answer], { type: 'button', draggable: true });
      chip.dataset.answer = answer;
      chip.setAttribute('aria-label', put('card.remove', { key: LABELS[answer] }));
      box.append(chip);
    });
    if (draft.tied && at === draft.tiers.length - 1) box.append(make('i', '', '= _'));
    lane.append(box);
  });
  lane.append(gap(draft.tiers.length));
  const left = draft.left.map((answer) => LABELS[answer]).join(' ');
  if (draft.tiers.length && left) lane.append(make('span', 'rk-soft rk-left', put('lane.left', { names: left })));
  const flags = [...draft.flags.map((flag) => texts[`flag.${flag}`]), ...draft.own_flags];
  for (const flag of flags) lane.append(make('span', 'rk-flagged', flag));
}

function gap(at) {
  const node = make('span', 'rk-gap', at ? '›' : '');
  node.dataset.gap = at;
  return node;
}

function drawTyping() {
  const typing = document.activeElement === writing;
  root.classList.toggle('rk-typing', typing);
  find('.rk-hint').textContent = typing ? `${texts['write.keys_off']}. ${texts['write.hint']}` : '';
}

function drawFigures(rows) {
  find('.rk-figures dl').replaceChildren(...rows.flatMap((row) => {
    const value = make('dd');
    value.append(make('b', row.excluded ? 'rk-soft' : '', row.figure), make('span', 'rk-soft', row.means));
    if (row.annotator) value.append(exclusion(row)); // ranking_owner.js
    return [make('dt', '', row.name), value];
  }));
}
