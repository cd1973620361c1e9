// What is laid over a film in colours: pneumo_edge/overlay.py.

import { resizeFloat } from "./resize.js";
import { localLogits, sigmoid } from "./region.js";
import { rint } from "./levels.js";

const LONG_SIDE = 720; // of the layer, in pixels: as much as a map of some cells needs

/** Colours over a film of that size, RGBA: local probability, or evidence where the model outlines no region. `map` is
 * {width, height, values}, `look` is in constants.json. */
export function layer(map, filmWidth, filmHeight, outlines, look) {
  const scale = LONG_SIDE / Math.max(filmWidth, filmHeight);
  const [width, height] = [filmWidth, filmHeight].map((each) => Math.max(1, rint(each * scale)));
  return outlines ? glow(map, width, height, look) : evidence(map, width, height, look);
}

function glow(map, width, height, look) {
  const logits = localLogits(map, height, width);
  const levels = new Uint8Array(logits.length);
  for (let i = 0; i < levels.length; i += 1) levels[i] = rint(255 * sigmoid(logits[i]));
  return painted(levels, width, height, look);
}

function evidence(map, width, height, look) {
  const positive = map.values.map((value) => Math.max(value, 0));
  const peak = Math.max(...positive, look.full_evidence);
  const smooth = resizeFloat({ ...map, values: positive.map((value) => value / peak) }, width, height).values;
  const levels = Uint8Array.from(smooth, (share) => rint(255 * Math.min(Math.max(share, 0), 1)));
  const image = painted(levels, width, height, look);
  const most = levels.reduce((a, b) => Math.max(a, b), 0);
  if (most <= look.line_from) return image;
  // A line around the strongest part: where it is reached by a neighbour alone.
  const inside = (x, y) => levels[Math.min(Math.max(y, 0), height - 1) * width + Math.min(Math.max(x, 0), width - 1)] >= most / 2;
  for (let y = 0, i = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, i += 1) {
      if (inside(x, y)) continue;
      const near = [-1, 0, 1].some((dy) => [-1, 0, 1].some((dx) => inside(x + dx, y + dy)));
      if (near) image.data.fill(255, 4 * i, 4 * i + 4);
    }
  }
  return image;
}

function painted(levels, width, height, { colours, opacity }) {
  const image = new ImageData(width, height);
  const paint = Uint32Array.from(colours, ([r, g, b], level) => r | (g << 8) | (b << 16) | (opacity[level] << 24));
  const out = new Uint32Array(image.data.buffer);
  for (let i = 0; i < out.length; i += 1) out[i] = paint[levels[i]];
  return image;
}
