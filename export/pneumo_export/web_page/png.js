// PNG (ISO/IEC 15948) with all its bits, and without the colour management of a browser's own decoder.

import { Unreadable } from "./unreadable.js";

const CHANNELS = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 };
const DEPTHS = { 0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16] };

// Of an interlaced picture: first column and row, and the steps between them, of each of the seven passes.
const PASSES = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];

/** What the header says, and where the parts are. Throws `Unreadable`, with what is wrong, where the file is damaged. */
export function pngParts(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const parts = { packed: [], palette: null, hidden: null, exif: null, xmp: null, frames: 1 };
  for (let at = 8; at + 12 <= data.length; ) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...data.subarray(at + 4, at + 8));
    const body = data.subarray(at + 8, at + 8 + length);
    if (body.length < length) throw new Unreadable("it ends too early");
    if (kind === "IHDR") {
      Object.assign(parts, { width: view.getUint32(at + 8), height: view.getUint32(at + 12) });
      [parts.depth, parts.kind, , , parts.interlaced] = body.subarray(8, 13);
    } else if (kind === "PLTE") parts.palette = body;
    else if (kind === "tRNS") parts.hidden = body;
    else if (kind === "eXIf") parts.exif = body;
    else if (kind === "iTXt") parts.xmp ??= body;
    else if (kind === "acTL") parts.frames = view.getUint32(at + 8);
    else if (kind === "IDAT") parts.packed.push(body);
    else if (kind === "IEND") break;
    at += 12 + length;
  }
  const known = DEPTHS[parts.kind]?.includes(parts.depth) && parts.interlaced <= 1 && parts.width && parts.height;
  if (!known) throw new Unreadable("its header makes no sense");
  return parts;
}

/** The samples, as they are stored: {values, channels, ...what the header says}. */
export async function pngSamples(parts) {
  const { width, height, depth, kind, interlaced } = parts;
  const channels = CHANNELS[kind];
  const passes = (interlaced ? PASSES : [[0, 0, 1, 1]])
    .map(([left, top, across, down]) => ({
      left, top, across, down,
      columns: Math.ceil((width - left) / across),
      rows: Math.ceil((height - top) / down),
    }))
    .filter(({ columns, rows }) => columns > 0 && rows > 0);
  const bytesOf = (columns) => Math.ceil((columns * channels * depth) / 8);
  const length = passes.reduce((sum, pass) => sum + pass.rows * (1 + bytesOf(pass.columns)), 0);
  const raw = await inflated(parts.packed, length);
  const values = new (depth === 16 ? Uint16Array : Uint8Array)(width * height * channels);
  const pixel = Math.max(1, (channels * depth) >> 3);
  let at = 0;
  for (const { left, top, across, down, columns, rows } of passes) {
    const bytes = bytesOf(columns);
    unfilter(raw, at, rows, bytes, pixel);
    for (let y = 0; y < rows; y += 1) {
      const row = at + y * (1 + bytes) + 1;
      const into = (top + y * down) * width + left;
      for (let i = 0; i < columns * channels; i += 1) {
        const out = (into + Math.trunc(i / channels) * across) * channels + (i % channels);
        if (depth === 8) values[out] = raw[row + i];
        else if (depth === 16) values[out] = (raw[row + 2 * i] << 8) | raw[row + 2 * i + 1];
        else values[out] = (raw[row + ((i * depth) >> 3)] >> (8 - depth - ((i * depth) & 7))) & ((1 << depth) - 1);
      }
    }
    at += rows * (1 + bytes);
  }
  return { ...parts, channels, values };
}

/** So many bytes and no more, whatever a bomb would unfold to. */
async function inflated(packed, length) {
  const found = new Uint8Array(length);
  const reader = new Blob(packed).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  let at = 0;
  try {
    while (at < length) {
      const { done, value } = await reader.read();
      if (done) break;
      found.set(value.subarray(0, length - at), at);
      at += value.length;
    }
  } catch {
    // What is wrong with the stream is told below, where it matters.
  }
  reader.cancel().catch(() => {});
  if (at < length) throw new Unreadable("its pixels end too early");
  return found;
}

function unfilter(raw, start, rows, bytes, pixel) {
  for (let y = 0, at = start; y < rows; y += 1, at += 1 + bytes) {
    const filter = raw[at];
    const [first, end] = [at + 1, at + 1 + bytes];
    const up = y ? -1 - bytes : 0;
    if (filter > 4) throw new Unreadable("its pixels make no sense");
    for (let i = first; filter && i < end; i += 1) {
      const left = i - first >= pixel ? raw[i - pixel] : 0;
      const above = up ? raw[i + up] : 0;
      if (filter === 1) raw[i] += left;
      else if (filter === 2) raw[i] += above;
      else if (filter === 3) raw[i] += (left + above) >> 1;
      else raw[i] += paeth(left, above, up && i - first >= pixel ? raw[i + up - pixel] : 0);
    }
  }
}

function paeth(left, above, corner) {
  const [a, b, c] = [Math.abs(above - corner), Math.abs(left - corner), Math.abs(left + above - 2 * corner)];
  return a <= b && a <= c ? left : b <= c ? above : corner;
}
