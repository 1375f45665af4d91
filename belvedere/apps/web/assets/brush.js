// Strokes over a picture, in shares of its width and height; the event "input" follows each that is finished.
const find = (name) => element.querySelector(name);
const board = find('.board'), canvas = find('canvas'), picture = find('img');
let strokes = [], live = null;

function draw() {
  canvas.width = board.clientWidth;
  canvas.height = board.clientHeight;
  const pen = canvas.getContext('2d');
  Object.assign(pen, { lineCap: 'round', lineJoin: 'round', strokeStyle: '#ff6a2b' });
  for (const { radius, points } of live ? [...strokes, live] : strokes) {
    pen.lineWidth = 2 * radius * canvas.width;
    pen.beginPath();
    for (const [x, y] of [points[0], ...points]) pen.lineTo(x * canvas.width, y * canvas.height);
    pen.stroke();
  }
}

function begin() {
  const { source } = props.value || {};
  for (const part of [board, find('.tools')]) part.hidden = !source;
  strokes = (props.value || {}).strokes || [];
  if (source && picture.src !== source) picture.src = source;
  draw();
}

function change(next) {
  strokes = next;
  draw();
  props.value = { ...props.value, strokes };
  trigger('input');
}

const at = (event) => {
  const box = board.getBoundingClientRect(), share = (x) => Number(Math.min(1, Math.max(0, x)).toFixed(4));
  return [share((event.clientX - box.left) / box.width), share((event.clientY - box.top) / box.height)];
};
board.addEventListener('pointerdown', (event) => {
  event.preventDefault();
  board.setPointerCapture(event.pointerId);
  live = { radius: Number(find('.size').value) / 100, points: [at(event)] };
  draw();
});
board.addEventListener('pointermove', (event) => {
  if (!live) return;
  const [x, y] = at(event), [left, top] = live.points.at(-1);
  if (Math.hypot(x - left, y - top) < live.radius / 4) return;
  live.points.push([x, y]);
  draw();
});
board.addEventListener('pointerup', () => {
  if (!live) return;
  const done = live;
  live = null;
  change([...strokes, done]);
});
board.addEventListener('pointercancel', () => { live = null; draw(); });
find('.undo').addEventListener('click', () => strokes.length && change(strokes.slice(0, -1)));
find('.clear').addEventListener('click', () => strokes.length && change([]));
picture.addEventListener('load', draw);
new ResizeObserver(draw).observe(board);
watch('value', begin);
begin();
