// Disagreements of annotators and the owner's decisions; only on the owner's page. Runs before ranking.js, in one
// function with it and ranking_draw.js.
const disputes = make('details', 'rk-disputes');
disputes.append(make('summary'), make('p', 'rk-soft', '', { role: 'status' }), make('div'));
find('.rk-figures').before(disputes);
disputes.addEventListener('toggle', () => { if (disputes.open) send({ do: 'disputes' }); });

function drawOwner() {
  disputes.querySelector('summary').textContent = texts['disputes.title'];
  if (disputes.open) send({ do: 'disputes' });
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
