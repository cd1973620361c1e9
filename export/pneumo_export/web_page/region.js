// From the map of local logits to the outline of the region that stands out: pneumo_edge/region.py, number by number.

const STEPS = 4;
const OUTSIDE = -1e30;

// The corners of a square, clockwise from the upper left: 1, 2, 4, 8; its sides: top 0, right 1, bottom 2, left 3.
const JOINED = { 5: [[1, 0], [3, 2]], 10: [[0, 3], [2, 1]] };
const SIDES = {
  1: [[3, 0]], 2: [[0, 1]], 3: [[3, 1]], 4: [[1, 2]], 5: [[3, 0], [1, 2]], 6: [[0, 2]], 7: [[3, 2]],
  8: [[2, 3]], 9: [[2, 0]], 10: [[0, 1], [2, 3]], 11: [[2, 1]], 12: [[1, 3]], 13: [[1, 0]], 14: [[0, 3]],
};

export const sigmoid = (x) => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));

/** Outlines where the local probability reaches the threshold. `map` is {width, height, values}; gives {polygons, area,
 * strongest, width, height}, polygons in the pixels of a film of `width` x `height`. */
export function findRegion(map, threshold, width, height) {
  const highest = map.values.reduce((most, value) => Math.max(most, value), -Infinity);
  const region = { polygons: [], area: 0, strongest: sigmoid(highest), width, height };
  const cut = Math.log(threshold) - Math.log(1 - threshold);
  if (highest < cut) return region;
  const [y, x] = [places(map.height), places(map.width)];
  const inner = between(map, y, x);
  const wide = x.length + 2;
  const values = new Float64Array(wide * (y.length + 2)).fill(OUTSIDE);
  for (let i = 0; i < y.length; i += 1) {
    for (let j = 0; j < x.length; j += 1) values[(i + 1) * wide + j + 1] = inner[i * x.length + j] - cut;
  }
  const padded = (line, cells) => [line[0], ...line, line.at(-1)].map((each) => each / cells);
  const grid = { values, width: wide, height: y.length + 2, xs: padded(x, map.width), ys: padded(y, map.height) };
  for (const line of lines(grid)) {
    const points = bends(line, grid);
    const size = enclosed(points);
    if (!size) continue;
    region.area += size;
    region.polygons.push(points.map(([px, py]) => [px * width, py * height]));
  }
  region.area = Math.min(Math.max(region.area, 0), 1);
  return region;
}

/** As the JSON record has it: pixels to one decimal. */
export const rounded = (region) => ({
  ...region,
  polygons: region.polygons.map((polygon) => polygon.map((point) => point.map((at) => Number(at.toFixed(1))))),
  area: Number(region.area.toFixed(6)),
  strongest: Number(region.strongest.toFixed(6)),
});

/** The local logit at the centres of the pixels of a film of that size. */
export function localLogits(map, height, width) {
  const centres = (count, cells) => Array.from({ length: count }, (_, i) => ((i + 0.5) / count) * cells);
  return between(map, centres(height, map.height), centres(width, map.width));
}

function places(cells) {
  return [0, ...Array.from({ length: (cells - 1) * STEPS + 1 }, (_, i) => i / STEPS + 0.5), cells];
}

/** The bilinear logit at places in cells: the first cell's centre lies at 0.5. */
function between({ width, height, values }, y, x) {
  const across = neighbours(width, x);
  const down = neighbours(height, y);
  const found = new Float64Array(y.length * x.length);
  const row = new Float64Array(width);
  for (let i = 0, out = 0; i < y.length; i += 1) {
    for (let column = 0; column < width; column += 1) {
      const upper = values[down.before[i] * width + column];
      row[column] = upper + down.share[i] * (values[down.after[i] * width + column] - upper);
    }
    for (let k = 0; k < x.length; k += 1, out += 1) {
      const left = row[across.before[k]];
      found[out] = left + across.share[k] * (row[across.after[k]] - left);
    }
  }
  return found;
}

/** For each place the two cells between whose centres it lies, and how near it is to the second. */
function neighbours(cells, at) {
  const held = Float64Array.from(at, (each) => Math.min(Math.max(each - 0.5, 0), cells - 1));
  const before = Int32Array.from(held, Math.trunc);
  return { before, after: before.map((each) => Math.min(each + 1, cells - 1)), share: held.map((each, i) => each - before[i]) };
}

/** The closed lines around what is >= 0, each as the sides of squares that it crosses, in order. */
function lines({ values, width, height }) {
  const side = [0, 3, 2 * width, 1];
  const following = new Map();
  for (let i = 0; i + 1 < height; i += 1) {
    for (let j = 0; j + 1 < width; j += 1) {
      const n = i * width + j;
      const [a, b, c, d] = [values[n], values[n + 1], values[n + width + 1], values[n + width]];
      const corners = (a >= 0) + 2 * (b >= 0) + 4 * (c >= 0) + 8 * (d >= 0);
      if (corners === 0 || corners === 15) continue;
      const saddle = corners === 5 ? a * c - b * d : b * d - a * c;
      const ways = corners in JOINED && saddle >= 0 ? JOINED[corners] : SIDES[corners];
      for (const [start, end] of ways) following.set(2 * n + side[end], 2 * n + side[start]);
    }
  }
  const found = [];
  while (following.size) {
    // As Python's `popitem`: the last one that was put in.
    const [start, second] = [...following].at(-1);
    following.delete(start);
    const line = [start];
    for (let here = second; here !== start; ) {
      line.push(here);
      const next = following.get(here);
      following.delete(here);
      here = next;
    }
    found.push(line);
  }
  return found;
}

/** The points of a line; what lies on the way between two others is left out. */
function bends(line, { values, width, xs, ys }) {
  const points = line.map((each) => {
    const node = each >> 1;
    const other = node + (each % 2 ? width : 1);
    const share = values[node] / (values[node] - values[other]);
    const along = (places, a, b) => places[a] + share * (places[b] - places[a]);
    return [
      along(xs, node % width, other % width),
      along(ys, Math.trunc(node / width), Math.trunc(other / width)),
    ];
  });
  const before = (list, i) => list[(i || list.length) - 1];
  const after = (list, i) => list[(i + 1) % list.length];
  const moved = points.filter(([x, y], i) => Math.abs(x - before(points, i)[0]) + Math.abs(y - before(points, i)[1]) > 1e-12);
  return moved.filter(([x, y], i) => {
    const [bx, by] = before(moved, i);
    const [ax, ay] = after(moved, i);
    return Math.abs((x - bx) * (ay - y) - (y - by) * (ax - x)) > 1e-12;
  });
}

/** The area of a closed line, negative where it goes counterclockwise on a screen (the shoelace formula). */
function enclosed(points) {
  const twice = points.reduce((sum, [x, y], i) => {
    const [ax, ay] = points[(i + 1) % points.length];
    return sum + x * ay - y * ax;
  }, 0);
  return twice / 2;
}
