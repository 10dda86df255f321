// Words and axes of the curves that `curves.js` draws; the axes as in `axes.py`.
const WORDS = {
  en: { smoothing: 'Smoothing', log: 'Log scale', short: 'log', reset: 'Reset zoom', svg: 'This drawing as SVG', out: 'at or below 0: not shown',
    below: 'values ≤ 0',    smoothed: 'smoothed', none: 'No value is above 0',
    help: 'Drag across a curve to zoom, double-click to reset. Keys on a curve: arrows read values, + and − zoom, Esc resets.' },
  zh: { smoothing: '平滑', log: '对数刻度', short: '对数', reset: '还原缩放', svg: '保存为 SVG', out: '个值不大于 0，未画出',
    below: '个值 ≤ 0',    smoothed: '平滑后', none: '没有大于 0 的值',
    help: '在曲线上横向拖动可放大，双击还原。选中曲线后：方向键查看数值，+ 和 − 缩放，Esc 还原。' },
};
const MARGIN = 0.06;

function scale(low, high, start, end, log) {
  const to = log ? Math.log10 : (value) => value;
  const place = (value) => start + ((to(value) - to(low)) / (to(high) - to(low))) * (end - start);
  return Object.assign(place, { low, high, start, end, log });
}

function fitted(values, start, end, log) {
  let low = Math.min(...values), high = Math.max(...values);
  if (log) {
    const room = low < high ? (high / low) ** MARGIN : 2;
    return scale(low / room, high * room, start, end, true);
  }
  if (low === 0 && high === 0) return scale(0, 1, start, end);
  const room = high - low > 1e-9 * Math.max(Math.abs(low), Math.abs(high)) ? MARGIN * (high - low) : Math.max(Math.abs(low), Math.abs(high)) * 0.1;
  return scale(low >= 0 ? Math.max(0, low - room) : low - room, high <= 0 ? Math.min(0, high + room) : high + room, start, end);
}

function ticks({ low, high, log }, count, whole) {
  if (log) {
    const powers = [], fine = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const factor of [1, 2, 5]) {
        const value = Number(`${factor}e${power}`);
        if (value >= low && value <= high) { fine.push(value); if (factor === 1) powers.push(value); }
      }
    }
    if (fine.length > 1) return powers.length > 2 ? powers.filter((_, at) => at % Math.ceil(powers.length / 5) === 0) : fine;
  }
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  let step = [1, 2, 5, 10].map((factor) => power * factor).find((each) => each >= raw * 0.999);
  if (whole) step = Math.max(1, step);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) found.push(at * step);
  return found;
}

function tickLabel(value) {
  const size = Math.abs(value);
  if (size >= 10000) return `${Number((value / 1000).toPrecision(3))}k`;
  if (size && size < 0.001) return value.toExponential(1).replace('e-0', 'e-');
  return `${Number(Number(value.toFixed(6)).toPrecision(4))}`;
}
