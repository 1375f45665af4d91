// Shows one view of the sheets. Turning changes which part of a sheet is seen, and nothing is asked of the server.
const find = (name) => element.querySelector(name);
const stage = find('.stage'), view = find('.view'), angle = find('.angle'), rise = find('.rise');
const root = document.querySelector('#turntable');
const PIXELS = 14; // of dragging that are one step
let held = null;

const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const way = () => find('.ways input:checked').value;
const degrees = (x) => `${x < 0 ? '\u2212' : ''}${Math.abs(x)}\u00b0`;

function show() {
  const { sheets, columns, rises, aspect, note } = props.value;
  stage.classList.toggle('empty', !sheets);
  find('.note').textContent = note || '';
  if (!sheets) return;
  const column = ((Number(angle.value) * columns / 360) % columns + columns) % columns;
  const row = Number(rise.max) - Number(rise.value);
  const elevation = rises[row];
  stage.style.aspectRatio = aspect;
  view.style.backgroundImage = `url("${sheets[way()]}")`;
  view.style.backgroundSize = `${columns * 100}% ${rises.length * 100}%`;
  view.style.backgroundPosition = `${100 * column / (columns - 1)}% ${100 * row / (rises.length - 1)}%`;
  angle.nextElementSibling.value = degrees(Number(angle.value));
  rise.nextElementSibling.value = degrees(elevation);
  root.view = { what: way(), angle: Number(angle.value), elevation };
  view.setAttribute('aria-label', `The scene in ${way()} from ${degrees(Number(angle.value))}, ${degrees(elevation)} up`);
}

function begin() { // of a value: the dials fit its ring
  const { columns, rises } = props.value;
  if (columns && Number(angle.step) !== 360 / columns) {
    Object.assign(angle, { min: -180, max: 180 - 360 / columns, step: 360 / columns, value: 0 });
    Object.assign(rise, { min: 0, max: rises.length - 1, step: 1, value: rises.length - 1 - rises.indexOf(0) });
  }
  show();
}

function turn(steps, up) {
  const size = Number(angle.step), next = Number(angle.value) + steps * size;
  angle.value = ((next + 180) % 360 + 360) % 360 - 180;
  rise.value = clamp(Number(rise.value) + up, 0, Number(rise.max));
  show();
}

element.addEventListener('input', show);
stage.addEventListener('keydown', (event) => {
  const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
  if (!move) return;
  event.preventDefault();
  turn(...move);
});
stage.addEventListener('pointerdown', (event) => {
  held = { x: event.clientX, y: event.clientY };
  stage.setPointerCapture(event.pointerId);
  stage.classList.add('turning');
});
stage.addEventListener('pointermove', (event) => {
  if (!held) return;
  const steps = Math.trunc((held.x - event.clientX) / PIXELS), up = Math.trunc((event.clientY - held.y) / (4 * PIXELS));
  held.x -= steps * PIXELS;
  held.y += up * 4 * PIXELS;
  if (steps || up) turn(steps, up);
});
for (const end of ['pointerup', 'pointercancel']) stage.addEventListener(end, () => {
  held = null;
  stage.classList.remove('turning');
});
watch('value', begin);
begin();
