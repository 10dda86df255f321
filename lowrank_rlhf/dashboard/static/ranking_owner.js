// Disagreements of annotators with the owner's decisions, ranking with others, and exclusion; only on the owner's page.
// Runs before ranking.js, in one function with it and ranking_draw.js.
const disputes = make('details', 'rk-disputes');
disputes.append(make('summary'), make('p', 'rk-soft', '', { role: 'status' }), make('div'));
find('.rk-figures').before(disputes);
disputes.addEventListener('toggle', () => { if (disputes.open) send({ do: 'disputes' }); });

const team = make('details', 'rk-team');
team.append(make('summary'), make('form'), make('div'));
find('.rk-figures').after(team);
team.addEventListener('toggle', () => { if (team.open) send({ do: 'team' }); });
team.querySelector('form').addEventListener('submit', (event) => {
  event.preventDefault();
  const { guidelines: text, quota, deadline } = Object.fromEntries(new FormData(event.target));
  const given = { guidelines: text.trim() ? text : null, quota: quota ? Number(quota) : null, deadline: deadline || null };
  send({ do: 'team', team: given });
  send({ do: 'open' }); // guidelines and pace on the screen
});

function drawOwner() {
  disputes.querySelector('summary').textContent = texts['disputes.title'];
  team.querySelector('summary').textContent = texts['team.title'];
  if (disputes.open) send({ do: 'disputes' });
  if (team.open) send({ do: 'team' });
}

// What is typed stays until it is saved or another run is chosen.
function drawTeam({ settings, commands, note }) {
  const form = team.querySelector('form'), typed = form.dataset.of === whose && !note ? new FormData(form) : null;
  form.hidden = !settings;
  form.dataset.of = whose;
  const fields = [['textarea', 'guidelines', 'team.guidelines', { rows: 8, maxLength: 20000 }],
    ['input', 'quota', 'team.quota', { type: 'number', min: 1 }], ['input', 'deadline', 'team.deadline', { type: 'date' }]];
  form.replaceChildren(...fields.map(([tag, name, key, kind]) => {
    const label = make('label', 'rk-soft', texts[key]), field = make(tag, '', undefined, { name, ...kind });
    field.value = typed ? typed.get(name) : (settings || {})[name] ?? '';
    label.append(field);
    return label;
  }), make('button', '', texts['team.save']), make('span', 'rk-soft', note, { role: 'status' }));
  team.querySelector('div').replaceChildren(...commands.map((one) => {
    const row = make('div', 'rk-command'), copy = make('button', '', texts['team.copy'], { type: 'button' });
    const command = make('code', '', one.command);
    copy.addEventListener('click', () => {
      getSelection().selectAllChildren(command); // over HTTP from another machine there is no clipboard to write to
      document.execCommand('copy');
      copy.textContent = texts['team.copied'];
    });
    row.append(make('div', 'rk-soft', one.means), command, ' ', copy);
    return row;
  }));
}

function drawDisputes(rows, note) {
  disputes.querySelector('p').textContent = note;
  disputes.querySelector('div').replaceChildren(...rows.map(dispute));
}

function dispute(row) {
  const box = make('section', 'rk-dispute');
  for (const turn of row.turns) box.append(make('div', 'rk-soft', texts[`role.${turn.role}`]), prose(turn.text));
  const answers = make('ol');
  answers.append(...row.answers.map((answer, index) => {
    const node = make('li', 'rk-said');
    const body = prose(answer.text);
    body.tabIndex = 0; // scrolls by keys
    node.append(make('b', '', LABELS[index]), body);
    return node;
  }));
  const orders = make('div', 'rk-orders');
  orders.append(...row.orders.map((one) => {
    const column = make('div');
    column.append(make('b', '', one.name), make('span', 'rk-order', one.order || '-'));
    column.append(...one.remarks.map((remark) => make('span', 'rk-soft', remark)));
    if (one.order) column.append(decision('disputes.take', () => ({ do: 'decide', key: one.order }), row));
    return column;
  }));
  box.append(answers, make('div', 'rk-soft', row.alike), orders);
  if (row.decided) {
    const done = make('div', 'rk-decided', row.decided);
    done.append(' ', decision('disputes.undo', () => ({ do: 'undecide' }), row));
    box.append(done);
  } else box.append(ownOrder(row));
  return box;
}

function ownOrder(row) {
  const form = make('form'), label = make('label', 'rk-soft', texts['disputes.own']);
  const order = make('input', '', undefined, { maxLength: 200 });
  label.append(order);
  form.append(label, make('button', '', texts['disputes.decide']));
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    send({ do: 'decide', prompt_id: row.prompt_id, key: order.value });
  });
  return form;
}

function decision(name, step, row) {
  const button = make('button', '', texts[name], { type: 'button' });
  button.addEventListener('click', () => send({ prompt_id: row.prompt_id, ...step() }));
  return button;
}

// Under each annotator's figures, which follow the new screen.
function exclusion(row) {
  const button = make('button', '', texts[row.excluded ? 'annotators.restore' : 'annotators.exclude'], { type: 'button' });
  button.ariaLabel = `${button.textContent}: ${row.name}`;
  button.addEventListener('click', () => {
    send({ do: row.excluded ? 'restore' : 'exclude', annotator: row.annotator });
    send({ do: 'open' });
  });
  return button;
}
