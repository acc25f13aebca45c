// The map of a report: layers that can be switched, and the nearest neighbours of a place.
'use strict';
const data = JSON.parse(document.getElementById('map-data').textContent);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
// One row of data.width a place; each component has a scale and an offset of its own.
const vectors = Float32Array.from(new Int8Array(bytes(data.vectors)),
  (value, i) => value * data.scale[i % data.width] + data.offset[i % data.width]);
const cells = new Uint32Array(bytes(data.cells)); // cell of each row, row by row of the map
const lon = new Float32Array(bytes(data.lon));
const lat = new Float32Array(bytes(data.lat));
const rowOf = new Map(Array.from(cells, (cell, row) => [cell, row]));
const map = document.getElementById('map');
const marks = document.getElementById('marks');
const found = document.getElementById('found');
const said = document.getElementById('said');
let cursor = [Math.floor(data.rows / 2), Math.floor(data.columns / 2)];
let chosen = null;
let near = []; // cosine and row of what is most similar to it

function lengthOf(row) {
  let square = 0;
  for (let d = 0; d < data.width; d++) square += vectors[row * data.width + d] ** 2;
  return Math.sqrt(square) || 1;
}
const lengths = Float32Array.from(cells, (_, row) => lengthOf(row));

// The most similar places by cosine, none closer than data.apart cells to the place or another.
function neighbours(row, count) {
  const scores = [];
  for (let other = 0; other < cells.length; other++) {
    if (apart(row, other) < data.apart) continue;
    let dot = 0;
    for (let d = 0; d < data.width; d++)
      dot += vectors[row * data.width + d] * vectors[other * data.width + d];
    scores.push([dot / (lengths[row] * lengths[other]), other]);
  }
  scores.sort((a, b) => b[0] - a[0]);
  const kept = [];
  for (const [score, other] of scores) {
    if (kept.length === count) break;
    if (kept.every(([, near]) => apart(other, near) >= data.apart)) kept.push([score, other]);
  }
  return kept;
}

// Cells between two places, along the axis where they are further apart.
function apart(one, other) {
  const [y, x] = placeOf(one), [v, u] = placeOf(other);
  return Math.max(Math.abs(v - y), Math.abs(u - x));
}

function placeOf(row) {
  return [Math.floor(cells[row] / data.columns), cells[row] % data.columns];
}

function mark(kind, y, x, text) {
  const shape = document.createElementNS('http://www.w3.org/2000/svg', 'g');
  shape.setAttribute('class', kind);
  shape.setAttribute('transform', `translate(${x + 0.5} ${y + 0.5}) scale(${data.columns / 100})`);
  shape.innerHTML = kind === 'near' ? `<circle r="2.4"/><text y="1">${text}</text>`
    : '<rect class="halo" x="-2" y="-2" width="4" height="4"/><rect x="-2" y="-2" width="4" height="4"/>';
  marks.append(shape);
}

function thumbnail(y, x) {
  const canvas = document.createElement('canvas');
  canvas.width = canvas.height = 72;
  const image = document.querySelector('#map img');
  const scale = image.naturalWidth / data.columns;
  const side = data.thumbnail * scale;
  const context = canvas.getContext('2d');
  context.imageSmoothingEnabled = false;
  context.drawImage(image, (x + 0.5) * scale - side / 2, (y + 0.5) * scale - side / 2, side, side,
    0, 0, 72, 72);
  return canvas;
}

function middle(block, axis) {
  return Math.min(block * data.step + (data.step >> 1), data.last[axis]);
}

function describe(row) {
  const [y, x] = placeOf(row);
  return `latitude ${lat[row].toFixed(5)}, longitude ${lon[row].toFixed(5)} (row ${middle(y, 0)}, column ${middle(x, 1)})`;
}

function draw() {
  marks.replaceChildren();
  if (chosen !== null) {
    for (const [i, [, row]] of near.entries())
      mark('near', ...placeOf(row), i + 1);
    mark('chosen', ...placeOf(chosen));
  }
  if (document.activeElement === map) mark('cursor', ...cursor);
}

function choose(y, x) {
  cursor = [y, x];
  const row = rowOf.get(y * data.columns + x);
  if (row === undefined) {
    said.textContent = 'There is no data at this place.';
    return;
  }
  chosen = row;
  near = neighbours(row, data.count);
  said.textContent = `Most similar to ${describe(row)}:`;
  found.replaceChildren(...near.map(([score, other], i) => {
    const item = document.createElement('li');
    const text = document.createElement('span');
    text.textContent = `${i + 1}: cosine ${score.toFixed(4)} at ${describe(other)}`;
    item.dataset.cell = cells[other];
    item.dataset.cosine = score;
    item.append(thumbnail(...placeOf(other)), text);
    return item;
  }));
  draw();
}

map.addEventListener('click', (event) => {
  const box = map.getBoundingClientRect();
  const at = (value, size, count) => Math.min(Math.max(Math.floor(value / size * count), 0), count - 1);
  choose(at(event.clientY - box.top, box.height, data.rows),
    at(event.clientX - box.left, box.width, data.columns));
});

map.addEventListener('keydown', (event) => {
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const far = event.shiftKey ? 10 : 1;
  if (event.key in steps) {
    const [dy, dx] = steps[event.key];
    cursor = [Math.min(Math.max(cursor[0] + dy * far, 0), data.rows - 1),
      Math.min(Math.max(cursor[1] + dx * far, 0), data.columns - 1)];
    draw();
  } else if (event.key === 'Enter' || event.key === ' ') {
    choose(...cursor);
  } else return;
  event.preventDefault();
});
map.addEventListener('focus', draw);
map.addEventListener('blur', draw);

for (const button of document.querySelectorAll('input[name=layer]')) {
  button.addEventListener('change', () => {
    for (const part of document.querySelectorAll('[data-layer]'))
      part.hidden = part.dataset.layer !== button.value;
  });
}
