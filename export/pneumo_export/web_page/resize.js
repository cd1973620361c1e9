// Pillow's resampling of 8-bit pictures (libImaging/Resample.c), to the last bit: weights are whole numbers, rows first.

const BITS = 22; // of a weight behind the point: PRECISION_BITS

const FILTERS = {
  box: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  // Keys, "Cubic convolution interpolation for digital image processing" (1981), with a = -0.5.
  bicubic: {
    support: 2,
    weight(x) {
      const a = -0.5;
      const at = Math.abs(x);
      if (at < 1) return ((a + 2) * at - (a + 3)) * at * at + 1;
      return at < 2 ? (((at - 5) * at + 8) * at - 4) * a : 0;
    },
  },
};

/** For each of `count` outputs the first input, how many there are, and their weights: floats that sum to 1. */
function weights(size, from, to, count, { support, weight }) {
  const step = (to - from) / count;
  const scale = Math.max(step, 1);
  const reach = support * scale;
  return Array.from({ length: count }, (_, i) => {
    const centre = from + (i + 0.5) * step;
    const first = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const last = Math.min(Math.trunc(centre + reach + 0.5), size);
    const found = new Float64Array(last - first);
    let sum = 0;
    for (let k = 0; k < found.length; k += 1) {
      found[k] = weight((k + first - centre + 0.5) * (1 / scale));
      sum += found[k];
    }
    if (sum) for (let k = 0; k < found.length; k += 1) found[k] /= sum;
    return { first, found };
  });
}

function whole({ first, found }) {
  return { first, found: Int32Array.from(found, (each) => Math.trunc((each < 0 ? -0.5 : 0.5) + each * (1 << BITS))) };
}

/** Scales a grey picture {width, height, values} of 8 bits to `width` x `height`. `box` is the part to be scaled: left,
 * top, right, bottom, which may lie between pixels; all of it by default. `filter`: bicubic or box. */
export function resize(picture, width, height, box = [0, 0, picture.width, picture.height], filter = "bicubic") {
  const [left, top, right, bottom] = box;
  const across = (at) =>
    width !== at.width || left || right !== width ? resizeRows(at, width, left, right, FILTERS[filter]) : at;
  const down = (at) =>
    height !== at.height || top || bottom !== height ? resizeColumns(at, height, top, bottom, FILTERS[filter]) : at;
  // From version 13 on Pillow begins with the columns where that takes away twice as much; what comes between is rounded,
  // so that it is not the same.
  const columnsFirst = Math.max(picture.height - height, 0) > 2 * Math.max(picture.width - width, 0);
  return columnsFirst ? across(down(picture)) : down(across(picture));
}

function resizeRows({ width: w, height, values }, width, left, right, filter) {
  const across = weights(w, left, right, width, filter).map(whole);
  const rows = new Uint8Array(width * height);
  for (let y = 0, out = 0; y < height; y += 1) {
    const row = y * w;
    for (let x = 0; x < width; x += 1, out += 1) {
      const { first, found } = across[x];
      let sum = 1 << (BITS - 1);
      for (let k = 0, i = row + first; k < found.length; k += 1, i += 1) sum += values[i] * found[k];
      rows[out] = clipped(sum);
    }
  }
  return { width, height, values: rows };
}

function resizeColumns({ width, height: h, values }, height, top, bottom, filter) {
  const down = weights(h, top, bottom, height, filter).map(whole);
  const done = new Uint8Array(width * height);
  const sums = new Int32Array(width);
  for (let y = 0; y < height; y += 1) {
    const { first, found } = down[y];
    sums.fill(1 << (BITS - 1));
    for (let k = 0; k < found.length; k += 1) {
      const share = found[k];
      for (let x = 0, i = (first + k) * width; x < width; x += 1, i += 1) sums[x] += values[i] * share;
    }
    for (let x = 0; x < width; x += 1) done[y * width + x] = clipped(sums[x]);
  }
  return { width, height, values: done };
}

const clipped = (sum) => {
  const level = sum >> BITS;
  return level < 0 ? 0 : level > 255 ? 255 : level;
};

/** The same, bicubic, for numbers of any size, which are not rounded. */
export function resizeFloat({ width: w, height: h, values }, width, height) {
  const across = weights(w, 0, w, width, FILTERS.bicubic);
  const down = weights(h, 0, h, height, FILTERS.bicubic);
  const rows = new Float32Array(width * h);
  for (let y = 0; y < h; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const { first, found } = across[x];
      rows[y * width + x] = found.reduce((sum, each, k) => sum + each * values[y * w + first + k], 0);
    }
  }
  const done = new Float32Array(width * height);
  for (let y = 0; y < height; y += 1) {
    const { first, found } = down[y];
    for (let x = 0; x < width; x += 1) {
      done[y * width + x] = found.reduce((sum, each, k) => sum + each * rows[(first + k) * width + x], 0);
    }
  }
  return { width, height, values: done };
}
