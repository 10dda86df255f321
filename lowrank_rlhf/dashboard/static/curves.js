// Curves that one can question: logarithmic axis, smoothing, zoom, and the drawing as a file. It draws again, by the
// `data-chart` of a chart (see `drawing.py`) and the figures in its CSV link, what Python has drawn.
const SPACE = 'http://www.w3.org/2000/svg', MOST_POINTS = 400, MOST_STRIPS = 100, DOTS = 12, SHORTEST_DRAG = 8;
const views = new Map();  // by run and chart: whether its axis is logarithmic, and the range that is shown

const make = (name, attributes, text) => {
  const made = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
};
const thinned = (all, most) => {
  const stride = Math.ceil(all.length / most);
  return stride > 1 ? all.filter((_, at) => at % stride === 0 || at === all.length - 1) : all;
};
const shown = (value) => (Number.isInteger(value) ? `${value}` : `${Number(value.toPrecision(4))}`);

// The curves' points from the CSV in the figure's link: a column for each, cells empty where a curve has no point.
function pointsOf(link, count) {
  const text = decodeURIComponent(link.href.slice(link.href.indexOf(',') + 1)), found = Array.from({ length: count }, () => []);
  for (const row of text.trim().split('\n')) {
    const cells = row.split(',');
    if (cells.length !== count + 1 || cells[0] === '' || !cells.every((cell) => Number.isFinite(Number(cell)))) continue;  // header
    found.forEach((points, at) => { if (cells[at + 1] !== '') points.push([Number(cells[0]), Number(cells[at + 1])]); });
  }
  return found;
}

// Exponential moving average without the bias of its first values (Kingma & Ba 2015, section 3).
function smooth(points, weight) {
  let sum = 0, total = 0;
  return points.map(([x, y]) => {
    sum = weight * sum + (1 - weight) * y;
    total = weight * total + (1 - weight);
    return [x, sum / total];
  });
}

class Curve {
  constructor(figure, root) {
    [this.figure, this.svg, this.link] = [figure, figure.querySelector('svg.chart'), figure.querySelector('a.csv')];
    this.about = JSON.parse(this.svg.dataset.chart);
    this.points = pointsOf(this.link, this.about.lines.length);
    this.key = `${window.shownRun || ''}/${this.link.download}`;
    if (!views.has(this.key)) views.set(this.key, { log: false, range: null });
    this.view = views.get(this.key);
    this.root = root;
    this.canLog = this.points.some((points) => points.some(([, y]) => y > 0));
    this.addButtons();
    Object.entries({ tabindex: 0, 'data-curve': this.key }).forEach((each) => this.svg.setAttribute(...each));
    this.draw();
  }

  get words() { return WORDS[this.root.lang]; }

  addButtons() {
    const bar = document.createElement('span');
    bar.className = 'curve-buttons';
    const add = (className, textContent, title, act) => {
      const button = Object.assign(document.createElement('button'), { type: 'button', className, textContent, title, ariaLabel: title });
      button.addEventListener('click', act);
      bar.append(button);
      return button;
    };
    this.reset = add('reset', '⟲', this.words.reset, () => { this.zoom(null); this.svg.focus({ preventScroll: true }); });
    this.log = add('log', this.words.short, this.canLog ? this.words.log : this.words.none, () => { this.view.log = !this.view.log; this.draw(); });
    this.log.disabled = !this.canLog;
    add('svg', 'SVG', this.words.svg, () => this.save());
    this.link.after(bar);
  }

  // A curve of a few points hides nothing: it is shown as it is.
  smoothed(which) { return this.root.smoothing() > 0 && !this.about.lines[which].dots && this.points[which].length > DOTS; }

  zoom(range) { this.view.range = range; this.draw(); }

  // The value at a pixel of the screen.
  valueAt(clientX) {
    const box = this.svg.getBoundingClientRect(), { low, high, start, end } = this.across;
    const x = ((clientX - box.left) / box.width) * this.svg.viewBox.baseVal.width;
    return low + ((Math.min(end, Math.max(start, x)) - start) / (end - start)) * (high - low);
  }

  draw() {
    const { left, right, top, base, x, y, lines, guides } = this.about, { log, range } = this.view;
    const [first, last] = range || x;
    this.across = scale(first, last, left, right);
    const inside = ([at]) => at >= first && at <= last, visible = ([, value]) => !log || value > 0;
    const raw = this.points.map((points) => points.filter(visible));
    this.drawn = raw.map((points, at) => (this.smoothed(at) ? smooth(points, this.root.smoothing()) : points).filter(inside));
    const behind = raw.map((points, at) => (this.smoothed(at) ? points.filter(inside) : []));
    const scales = [false, true].map((side) => {
      const values = lines.flatMap((line, at) => (line.right === side ? [...this.drawn[at], ...behind[at]].map(([, value]) => value) : []));
      if (!values.length) return null;
      return y && !side && !log ? scale(...y, base, top) : fitted(values, base, top, log);
    });
    const kept = [...this.svg.querySelectorAll('.legend')];
    this.svg.replaceChildren(...this.axes(scales), ...kept);
    for (const guide of guides) this.guide(guide, scales);
    lines.forEach((line, at) => {
      const up = scales[Number(line.right)];
      if (!up) return;
      this.line(behind[at], line, up, true);
      this.line(this.drawn[at], line, up, false);
    });
    this.strips(raw.map((points) => points.filter(inside)));
    this.reset.hidden = !range;
    this.log.setAttribute('aria-pressed', log);
  }

  axes(scales) {
    const { left, right, base, labels, lines } = this.about, { across, view: { log } } = this, height = this.about.height;
    const out = log ? this.points.flat().filter(([, value]) => value <= 0).length : 0;
    const made = [make('line', { class: 'axis', x1: left, y1: base, x2: right, y2: base })];
    const text = (x, y, anchor, words, colour = '') => made.push(make('text', { x, y, 'text-anchor': anchor, class: colour }, words));
    const whole = this.points.flat().every(([x]) => Number.isInteger(x));
    for (const value of ticks(across, 5, whole)) text(across(value), base + 14, 'middle', tickLabel(value));
    text((left + right) / 2, height - 4, 'middle', labels[0]);
    scales.forEach((up, side) => {
      if (!up) return;
      const colour = scales[0] && scales[1] ? lines.find((line) => Number(line.right) === side).colour : '';
      for (const value of ticks(up, 4)) {
        if (!side) made.push(make('line', { class: 'grid', x1: left, y1: up(value), x2: right, y2: up(value) }));
        text(side ? right + 6 : left - 6, up(value) + 4, side ? 'start' : 'end', tickLabel(value), colour);
      }
      const words = [labels[1 + side], log && this.words.short, out && !side && `${out} ${scales[1] ? this.words.below : this.words.out}`].filter(Boolean).join(' · ');
      text(side ? this.about.width - 4 : 4, 11, side ? 'end' : 'start', words, colour);
    });
    return made;
  }

  guide([x, y, label], [left, right]) {
    const up = left || right, { top, base } = this.about, { across } = this;
    if (!up) return;
    const cut = (value, low, high) => Math.min(high, Math.max(low, value));
    if (x[0] !== null && x[0] === x[1] && (x[0] < across.low || x[0] > across.high)) return;
    if (y[0] !== null && y[0] === y[1] && (y[0] < up.low || y[0] > up.high)) return;
    const place = (value, end, to, from, till) => (value === null ? end : cut(to(value), from, till));
    const [x1, x2] = [place(x[0], across.start, across, across.start, across.end), place(x[1], across.end, across, across.start, across.end)];
    const [y1, y2] = [place(y[0], base, up, top, base), place(y[1], top, up, top, base)];
    this.svg.append(make('line', { class: 'guide', x1, y1, x2, y2 }));
    if (label) this.svg.append(make('text', { x: x2 - 4, y: top + 9, 'text-anchor': 'end' }, label));
  }

  line(points, { colour, dots }, up, thin) {
    const places = thinned(points, MOST_POINTS).map(([x, y]) => [this.across(x), up(y)]);
    const kind = `${colour}${thin ? ' thin' : ''}`;
    if (!dots && places.length) this.svg.append(make('polyline', { class: kind, points: places.map((place) => place.map((n) => n.toFixed(1)).join()).join(' ') }));
    const marked = dots || places.length <= DOTS ? places : places.slice(-1);
    if (!thin) for (const [cx, cy] of marked) this.svg.append(make('circle', { class: kind, cx, cy, r: 2.6 }));
  }

  // Values under the pointer, as `readouts.py` draws them.
  strips(raw) {
    const { top, base, lines, labels } = this.about, { across } = this;
    const values = raw.map((points) => new Map(points)), smoothed = this.drawn.map((points) => new Map(points));
    const places = [...new Set(raw.flatMap((points) => thinned(points.map(([x]) => x), MOST_STRIPS)))].sort((one, other) => one - other);
    const edges = [across.start, ...places.slice(1).map((x, at) => (across(x) + across(places[at])) / 2), across.end];
    places.forEach((x, at) => {
      const place = across(x), first = place < (across.start + across.end) / 2, textX = first ? place + 6 : place - 6;
      const group = make('g', { class: 'at', 'data-x': x }), text = make('text', { 'text-anchor': first ? 'start' : 'end' });
      group.append(make('rect', { x: edges[at], y: top, width: Math.max(0, edges[at + 1] - edges[at]), height: base - top }),
        make('line', { x1: place, y1: top, x2: place, y2: base }), text);
      const rows = [['', `${labels[0]}: ${shown(x)}`]];
      lines.forEach((line, which) => {
        if (!values[which].has(x)) return;
        const name = line.name.length > 18 ? `…${line.name.slice(-18)}` : line.name;
        rows.push([line.colour, `${name}: ${shown(values[which].get(x))}`]);
        if (this.smoothed(which)) rows.push([line.colour, `${this.words.smoothed}: ${shown(smoothed[which].get(x))}`]);
      });
      rows.slice(0, 13).forEach(([colour, words], row) => text.append(make('tspan', { class: colour, x: textX, y: top + 12 * (row + 1) }, words)));
      this.svg.append(group);
    });
  }

  // Show the values of the next strip in a direction, from the one that is shown.
  read(step) {
    const strips = [...this.svg.querySelectorAll('.at')], before = strips.findIndex((strip) => strip.classList.contains('on'));
    const at = before < 0 ? (step > 0 ? 0 : strips.length - 1) : Math.min(strips.length - 1, Math.max(0, before + step));
    strips.forEach((strip, which) => strip.classList.toggle('on', which === at));
    if (strips[at]) this.root.say([...strips[at].querySelectorAll('tspan')].map((span) => span.textContent).join(', '));
  }

  zoomBy(factor) {
    const on = this.svg.querySelector('.at.on'), { low, high } = this.across, [first, last] = this.about.x;
    const centre = on ? Number(on.dataset.x) : (low + high) / 2, width = Math.min(last - first, (high - low) * factor);
    const start = Math.min(last - width, Math.max(first, centre - width / 2)), range = [start, start + width];
    this.zoom(range[0] <= first && range[1] >= last ? null : range);
    this.svg.querySelector(`.at[data-x="${on ? on.dataset.x : ''}"]`)?.classList.add('on');
  }

  save() {
    const { width, height } = this.svg.viewBox.baseVal, copy = this.svg.cloneNode(true);
    copy.querySelectorAll('.at, .zoom').forEach((part) => part.remove());
    for (const name of ['tabindex', 'data-curve', 'data-chart']) copy.removeAttribute(name);
    // Gradio also has each rule of the page below a prefix.
    const texts = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules]).map((rule) => rule.cssText);
    const rules = new Set(texts.map((text) => text.replace(/\.gradio-container\S* \.contain /g, '')));
    copy.prepend(make('style', {}, [...rules].filter((rule) => /^(@media[^{]*\{\s*)?\.chart\b/.test(rule)).join('\n')),
      make('rect', { class: 'page', width, height }));
    Object.entries({ xmlns: SPACE, width, height }).forEach((each) => copy.setAttribute(...each));
    const link = document.createElement('a');
    link.href = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`;
    link.download = this.link.download.replace(/csv$/, 'svg');
    link.click();
  }
}

// Makes the curves below an element, and those that replace them, questionable.
function connectCurves(area, language) {
  const curves = new Map();
  const root = { lang: 'en', smoothing: () => Number(slider.value) };
  const tools = document.createElement('div'), label = document.createElement('label'), heard = document.createElement('output');
  const slider = Object.assign(document.createElement('input'), { type: 'range', min: 0, max: 0.98, step: 0.02, value: 0 });
  const about = document.createElement('span'), named = document.createTextNode('');
  tools.className = 'curve-tools';
  heard.className = 'heard';
  label.append(named, slider);
  tools.append(label, about, heard);
  root.say = (words) => { heard.textContent = words; };
  slider.addEventListener('input', () => curves.forEach((curve) => curve.draw()));
  let focused = null, drag = null;
  const curveOf = (event) => curves.get(event.target.closest?.('svg[data-curve]')?.dataset.curve);
  function speak() {
    root.lang = language() === 'zh' ? 'zh' : 'en';
    [named.data, about.textContent] = [`${WORDS[root.lang].smoothing} `, WORDS[root.lang].help];
  }
  function connect() {
    const fresh = [...area.querySelectorAll('figure')].filter((figure) => figure.querySelector('a.csv') && figure.querySelector('svg[data-chart]:not([data-curve])'));
    if (!fresh.length) { tools.hidden = !area.querySelector('svg[data-curve]'); return; }
    speak();
    for (const figure of fresh) { const curve = new Curve(figure, root); curves.set(curve.key, curve); }
    if (!tools.isConnected) area.before(tools);
    tools.hidden = false;
    if (focused && document.activeElement === document.body) curves.get(focused)?.svg.focus({ preventScroll: true });
  }
  document.addEventListener('focusin', (event) => { focused = event.target.dataset?.curve || null; });
  area.addEventListener('dblclick', (event) => curveOf(event)?.zoom(null));
  area.addEventListener('pointerdown', (event) => {
    const curve = curveOf(event);
    if (curve && event.button === 0) drag = { key: curve.svg.dataset.curve, from: event.clientX };
  });
  const selection = (event) => {
    const curve = curves.get(drag.key), ends = [drag.from, event.clientX].map((x) => curve.valueAt(x)).sort((one, other) => one - other);
    return { curve, ends };
  };
  addEventListener('pointermove', (event) => {
    if (!drag || Math.abs(event.clientX - drag.from) < SHORTEST_DRAG) return;
    const { curve, ends } = selection(event), [x, end] = ends.map(curve.across), { top, base } = curve.about;
    curve.svg.querySelector('.zoom')?.remove();
    curve.svg.append(make('rect', { class: 'zoom', x, y: top, width: end - x, height: base - top }));
  });
  addEventListener('pointerup', (event) => {
    if (!drag) return;
    const { curve, ends } = selection(event), far = Math.abs(event.clientX - drag.from) >= SHORTEST_DRAG;
    drag = null;
    curve.svg.querySelector('.zoom')?.remove();
    if (far && ends[1] > ends[0]) curve.zoom(ends);
  });
  addEventListener('pointercancel', () => { if (drag) curves.get(drag.key).svg.querySelector('.zoom')?.remove(); drag = null; });
  area.addEventListener('keydown', (event) => {
    const curve = curveOf(event);
    if (!curve || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = {
      ArrowRight: () => curve.read(1), ArrowLeft: () => curve.read(-1), '+': () => curve.zoomBy(0.5), '=': () => curve.zoomBy(0.5),
      '-': () => curve.zoomBy(2), Escape: () => curve.zoom(null), 0: () => curve.zoom(null),
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  const again = () => { speak(); curves.forEach((curve) => curve.draw()); };
  new MutationObserver(again).observe(document.documentElement, { attributeFilter: ['lang'] });
  new MutationObserver(connect).observe(area, { childList: true, subtree: true });
  connect();
}
