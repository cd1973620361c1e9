// From the bytes of a file to the one array that the model takes, and to the film that people look at: what
// pneumo_edge/preprocess.py, deep.py and levels.py do. tests/web holds it against them.

import { isDicom, readDicom } from "./dicom.js";
import { pngParts, pngSamples } from "./png.js";
import { filmRange, histogram, rint } from "./levels.js";
import { resize } from "./resize.js";
import { refuse, Unreadable } from "./unreadable.js";

const SEVERAL = "the file holds several pictures; only the first was read";
const LOOKED_AT = 64; // pixels a side, in which colour is looked for

/** Reads a picture. `limits` are those of constants.json, `size` the side of what the model takes.
 *
 * Gives {pixels, width, height, chroma, warnings, doubts, age, view, film}: the film as the model sees it, 0 = black, what
 * its file says, and the film as people see it: {width, height, values, levels, low, high}, from dark to light, with the
 * window that the model sees. Throws `Unreadable` with a sentence about the file. */
export async function readFilm(data, name, size, limits) {
  try {
    return await read(data, name, size, limits);
  } catch (error) {
    if (error instanceof Unreadable && error.whole) throw error;
    if (error instanceof RangeError) throw refuse(`${name} needs more memory than there is here: scale it down`);
    const why = error instanceof Unreadable ? error.message : "the browser cannot decode it";
    throw refuse(`${name} is damaged and cannot be read (${why}): copy it again from where it came`);
  }
}

async function read(data, name, size, limits) {
  if (data.length > limits.max_bytes) {
    throw refuse(`${name} is larger than ${limits.max_bytes >> 20} MB, which no film is: give the film itself`);
  }
  return readerOf(data, name)(data, name, size, limits);
}

/** What reads a file that begins so (132 bytes or more). Throws `Unreadable` for what is no film, or of a kind that is not
 * read here. */
export function readerOf(data, name) {
  if (!data.length) throw refuse(`${name} is empty: copy it again from where it came`);
  const begins = (text, at = 0) => [...text].every((letter, i) => data[at + i] === letter.charCodeAt(0));
  if (begins("\x89PNG\r\n\x1a\n")) return readPng;
  if (begins("\xff\xd8\xff")) return readJpeg;
  if (begins("RIFF") && begins("WEBP", 8)) return readWebp;
  if (begins("BM")) return readBmp;
  if (isDicom(data)) return readDicomFilm;
  if (begins("II*\0") || begins("MM\0*")) throw refuse(`${name} is a TIFF, which browsers do not read: save it as PNG`);
  throw refuse(`${name} is not an image that this page reads: use PNG, JPEG, WebP, BMP or DICOM`);
}

function checkSize(width, height, name, { max_pixels }) {
  if (width * height > max_pixels) {
    throw refuse(
      `${name} claims ${width} x ${height} pixels, more than any X-ray detector has: scale it down to ${Math.floor(max_pixels / 1e6)} million`,
    );
  }
}

/** The film that is made of a grey picture and, where there are colours, of its two others (Cb, Cr). */
function filmOf(grey, size, { colours = null, orientation = 1, box, chromaBox, film = null, several = false, full = grey }) {
  const turned = orientation >= 5;
  const pixels = turn(resize(grey, size, size, box), orientation).values;
  return {
    pixels,
    width: turned ? full.height : full.width,
    height: turned ? full.width : full.height,
    chroma: colours ? chroma(colours, chromaBox) : 0,
    warnings: several ? [SEVERAL] : [],
    doubts: [],
    age: null,
    view: "",
    film: turn(film ?? { ...full, levels: 255, low: 0, high: 255 }, orientation),
  };
}

/** Brings a picture upright that lies as EXIF says; from 5 on width and height change places. */
function turn(picture, orientation) {
  if (!(orientation >= 2 && orientation <= 8)) return picture;
  const turned = orientation >= 5;
  const { width: w, height: h, values } = picture;
  const [width, height] = turned ? [h, w] : [w, h];
  const [upsideDown, mirrored] = [[3, 4, 7, 8].includes(orientation), [2, 3, 6, 7].includes(orientation)];
  const found = new values.constructor(values.length);
  for (let y = 0, out = 0; y < height; y += 1) {
    const row = upsideDown ? height - 1 - y : y;
    for (let x = 0; x < width; x += 1, out += 1) {
      const column = mirrored ? width - 1 - x : x;
      found[out] = turned ? values[column * w + row] : values[row * w + column];
    }
  }
  return { ...picture, width, height, values: found };
}

// ------------------------------------------------------------------------------------------------------ colour

/** How Pillow makes YCbCr of RGB: sums of three rounded products, with six bits behind the point. */
const product = (share) => Int32Array.from({ length: 256 }, (_, i) => Math.trunc(share * 64 * i + 0.5));
const Y = [0.299, 0.587, 0.114].map(product);
const CB = [-0.168735892, -0.331264108, 0.5].map(product);
const CR = [0.5, -0.418687589, -0.081312411].map(product);

/** Grey, and where not all of it is grey the two colours, of `channels` interleaved 8-bit samples. */
function fromRgb(values, width, height, channels = 3) {
  const [grey, cb, cr] = [0, 1, 2].map(() => new Uint8Array(width * height));
  let coloured = false;
  const clip = (value) => Math.min(Math.max(value, 0), 255);
  for (let i = 0, at = 0; i < grey.length; i += 1, at += channels) {
    const [r, g, b] = [values[at], values[at + 1], values[at + 2]];
    grey[i] = (Y[0][r] + Y[1][g] + Y[2][b]) >> 6;
    cb[i] = clip(((CB[0][r] + CB[1][g] + CB[2][b]) >> 6) + 128);
    cr[i] = clip(((CR[0][r] + CR[1][g] + CR[2][b]) >> 6) + 128);
    coloured ||= cb[i] !== 128 || cr[i] !== 128;
  }
  const of = (plane) => ({ width, height, values: plane });
  return { grey: of(grey), colours: coloured ? [of(cb), of(cr)] : null };
}

/** The same as a JPEG stores it, as near as can be told from the colours. */
function stored(rgba, width, height) {
  const [grey, cb, cr] = [0, 1, 2].map(() => new Uint8ClampedArray(width * height));
  let coloured = false;
  for (let i = 0, at = 0; i < grey.length; i += 1, at += 4) {
    const [r, g, b] = [rgba[at], rgba[at + 1], rgba[at + 2]];
    if (r === g && g === b) [grey[i], cb[i], cr[i]] = [r, 128, 128];
    else {
      const luma = 0.299 * r + 0.587 * g + 0.114 * b;
      [grey[i], cb[i], cr[i]] = [luma, (b - luma) / 1.772 + 128, (r - luma) / 1.402 + 128];
      coloured ||= cb[i] !== 128 || cr[i] !== 128;
    }
  }
  const of = (plane) => ({ width, height, values: new Uint8Array(plane.buffer) });
  return { grey: of(grey), colours: coloured ? [of(cb), of(cr)] : null };
}

/** The mean distance from grey. A look at some thousand pixels comes first, as in Python. */
function chroma(colours, box) {
  const [{ width, height }] = colours;
  const looks = colours.some(({ values }) => {
    for (let y = 0; y < LOOKED_AT; y += 1) {
      for (let x = 0; x < LOOKED_AT; x += 1) {
        const row = Math.trunc(((y + 0.5) * height) / LOOKED_AT);
        if (values[row * width + Math.trunc(((x + 0.5) * width) / LOOKED_AT)] !== 128) return true;
      }
    }
    return false;
  });
  if (!looks) return 0;
  const [cb, cr] = colours.map((each) => resize(each, LOOKED_AT, LOOKED_AT, box, "box").values);
  const sum = cb.reduce((all, value, i) => all + Math.max(Math.abs(value - 128), Math.abs(cr[i] - 128)), 0);
  return sum / cb.length;
}

// --------------------------------------------------------------------------------------------------------- PNG

async function readPng(data, name, size, limits) {
  const parts = pngParts(data);
  checkSize(parts.width, parts.height, name, limits);
  const png = await pngSamples(parts);
  const say = { orientation: orientationOf(parts.exif, parts.xmp), several: parts.frames > 1 };
  if (png.depth === 16) return readDeep(png, size, limits, say);
  const { width, height } = png;
  const eight = opened(png);
  if (!eight.coloured) return filmOf({ width, height, values: eight.values }, size, say);
  const { grey, colours } = fromRgb(eight.values, width, height);
  return filmOf(grey, size, { ...say, colours });
}

/** 8 bits a sample: grey, or red, green and blue; what shows through is black. */
function opened({ kind, depth, values, palette, hidden, width, height, channels }) {
  const count = width * height;
  if (kind === 3) {
    if (!palette) throw new Unreadable("its palette is missing");
    const found = new Uint8Array(3 * count);
    for (let i = 0; i < count; i += 1) {
      const opacity = hidden?.[values[i]] ?? 255;
      for (let k = 0; k < 3; k += 1) found[3 * i + k] = blend(palette[3 * values[i] + k] ?? 0, opacity);
    }
    return { values: found, coloured: true };
  }
  if (kind === 0) {
    const found = depth === 8 ? values : values.map((value) => value * { 1: 255, 2: 85, 4: 17 }[depth]);
    if (hidden?.length < 2 || !hidden) return { values: found, coloured: false };
    const nothing = (hidden[0] << 8) | hidden[1];
    const rgb = new Uint8Array(3 * count);
    for (let i = 0; i < count; i += 1) rgb.fill(found[i] === nothing ? 0 : found[i], 3 * i, 3 * i + 3);
    return { values: rgb, coloured: true };
  }
  if (kind === 2 && hidden?.length < 6) hidden = null;
  const nothing = kind === 2 && hidden ? [hidden[1], hidden[3], hidden[5]] : null;
  if (kind === 2 && !nothing) return { values, coloured: true };
  const found = new Uint8Array(3 * count);
  for (let i = 0; i < count; i += 1) {
    const at = i * channels;
    const rgb = kind === 4 ? [values[at], values[at], values[at]] : [values[at], values[at + 1], values[at + 2]];
    const opacity = nothing ? (rgb.every((value, k) => value === nothing[k]) ? 0 : 255) : values[at + channels - 1];
    for (let k = 0; k < 3; k += 1) found[3 * i + k] = blend(rgb[k], opacity);
  }
  return { values: found, coloured: true };
}

/** Over black, rounded as Pillow's `alpha_composite` does. */
const blend = (value, opacity) => (opacity === 255 ? value : Math.round((value * opacity) / 255));

/** 16 bits a sample: 8 are made of the range that the film uses. */
function readDeep(png, size, limits, say) {
  const { width, height, channels, values, kind } = png;
  const count = width * height;
  const colours = kind === 2 || kind === 6 ? 3 : 1;
  let opacity = null; // of each pixel, 0 to 65,535
  if (kind === 4 || kind === 6) opacity = (i) => values[i * channels + channels - 1];
  else if (png.hidden?.length >= 2 * colours) {
    const nothing = Array.from({ length: colours }, (_, k) => (png.hidden[2 * k] << 8) | png.hidden[2 * k + 1]);
    opacity = (i) => (nothing.every((value, k) => values[i * channels + k] === value) ? 0 : 65535);
  }
  // The same everywhere: it hides no part.
  let [least, most] = [65535, 0];
  for (let i = 0; opacity && i < count; i += 1) [least, most] = [Math.min(least, opacity(i)), Math.max(most, opacity(i))];
  if (opacity && least === most) opacity = null;
  const seen = new Uint32Array(65536);
  for (let i = 0; i < count; i += 1) {
    if (opacity && most && !opacity(i)) continue;
    for (let k = 0; k < colours; k += 1) seen[values[i * channels + k]] += 1;
  }
  const [low, high] = filmRange(seen, limits.film_range);
  const scale = high > low ? 255 / (high - low) : 1;
  const table = Uint8Array.from({ length: 65536 }, (_, v) => Math.min(Math.max(rint((v - low) * scale), 0), 255));
  const eight = new Uint8Array(count * colours);
  for (let i = 0; i < count; i += 1) {
    for (let k = 0; k < colours; k += 1) {
      const level = table[values[i * channels + k]];
      eight[i * colours + k] = opacity ? rint(level * Math.min(opacity(i) / 65535, 1)) : level;
    }
  }
  if (colours === 3) {
    const made = fromRgb(eight, width, height);
    return filmOf(made.grey, size, { ...say, colours: made.colours });
  }
  const grey = { width, height, values: eight };
  return filmOf(grey, size, { ...say, film: opacity ? null : ownLevels(png, histogram(values), low, high) });
}

/** Each value keeps its own level. */
function ownLevels({ width, height, channels, values }, counted, low, high) {
  const count = width * height;
  let [darkest, lightest] = [65535, 0];
  for (let i = 0; i < count; i += 1) {
    const value = values[i * channels];
    if (value < darkest) darkest = value;
    if (value > lightest) lightest = value;
  }
  const levels = Math.max(lightest - darkest, 1);
  const found = new (levels < 256 ? Uint8Array : Uint16Array)(count);
  for (let i = 0; i < count; i += 1) found[i] = values[i * channels] - darkest;
  return { width, height, values: found, levels, low: low - darkest, high: Math.max(high - darkest, low - darkest + 1) };
}

// -------------------------------------------------------------------------------------------------------- JPEG

const SOF = { 0xc0: "baseline", 0xc1: "extended", 0xc2: "progressive", 0xc3: "lossless", 0xc9: "arithmetic", 0xca: "arithmetic", 0xf7: "LS" };
const PLAIN = ["baseline", "extended", "progressive"];

async function readJpeg(data, name, size, limits) {
  const { kind, precision, width, height, components, exif, xmp, several, scans, plain } = jpegParts(data);
  checkSize(width, height, name, limits);
  if (components === 4) throw refuse(`${name} is a CMYK JPEG, which is made for print: save it as PNG`);
  if (!PLAIN.includes(kind) || precision !== 8) {
    const grey = components === 1 ? "" : ", in colour";
    throw refuse(
      `${name} is a JPEG of a rare kind (${kind}, ${precision} bits${grey}), which is not read here: save it as PNG, or export it without compression`,
    );
  }
  if (width * height * scans > limits.max_scanned_pixels) {
    throw refuse(`${name} is a JPEG with too many scans: save it again as a baseline JPEG`);
  }
  const rgba =
    (components === 1 && (await decodedGrey(plain, width, height))) ||
    (await decoded(new Blob([plain], { type: "image/jpeg" }), width, height));
  const full =
    components === 1
      ? { width, height, values: everyFourth(rgba, width * height) }
      : fromRgb(rgba, width, height, 4).grey;
  // The model sees the luma that is stored, people the one that Pillow makes of the colours.
  const { grey, colours } = components === 1 ? { grey: full, colours: null } : stored(rgba, width, height);
  const say = { orientation: orientationOf(exif, xmp), several, full };
  // libjpeg scales by 1/2, 1/4 or 1/8 while it decodes, and Python lets it: each pixel is the mean of a square.
  const least = Math.min(Math.floor(width / (2 * size)), Math.floor(height / (2 * size)));
  const step = [8, 4, 2].find((each) => least >= each) ?? 1;
  const box = [0, 0, width / step, height / step];
  return filmOf(averaged(grey, step), size, {
    ...say,
    box,
    colours: colours?.map((each) => averaged(each, step)) ?? null,
  });
}

function everyFourth(bytes, count) {
  const found = new Uint8Array(count);
  for (let i = 0; i < count; i += 1) found[i] = bytes[4 * i];
  return found;
}

/** The mean of squares; at the edges of what there is of them. */
function averaged(picture, step) {
  if (step === 1) return picture;
  const { values } = picture;
  const width = Math.ceil(picture.width / step);
  const height = Math.ceil(picture.height / step);
  const found = new Uint8Array(width * height);
  const sums = new Uint32Array(width);
  for (let y = 0; y < height; y += 1) {
    sums.fill(0);
    for (let k = 0; k < step; k += 1) {
      // Encoders fill up the last square with the edge of the picture.
      const row = Math.min(y * step + k, picture.height - 1) * picture.width;
      const all = Math.floor(picture.width / step);
      for (let x = 0, i = row; x < all; x += 1) {
        let sum = 0;
        for (const end = i + step; i < end; i += 1) sum += values[i];
        sums[x] += sum;
      }
      for (let x = all; x < width; x += 1) {
        for (let j = 0; j < step; j += 1) sums[x] += values[row + Math.min(x * step + j, picture.width - 1)];
      }
    }
    for (let x = 0; x < width; x += 1) found[y * width + x] = rint(sums[x] / (step * step));
  }
  return { width, height, values: found };
}

/** What the header says, and the file without what would make a browser turn or colour it: EXIF and ICC profile. */
function jpegParts(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const plain = [data.subarray(0, 2)];
  const parts = { exif: null, xmp: null, several: false, scans: 0 };
  let at = 2;
  for (;;) {
    if (at + 4 > data.length) throw new Unreadable("it ends too early");
    const marker = data[at + 1];
    if (data[at] !== 0xff) throw new Unreadable("a segment does not begin with a marker");
    if (marker === 0xff) {
      at += 1;
      continue;
    }
    const length = view.getUint16(at + 2);
    const body = data.subarray(at + 4, at + 2 + length);
    if (marker === 0xda) break;
    if (body.length < length - 2) throw new Unreadable("it ends too early");
    if (marker in SOF) {
      if (body.length < 6) throw new Unreadable("its header makes no sense");
      parts.kind = SOF[marker];
      [parts.precision, parts.components] = [body[0], body[5]];
      [parts.height, parts.width] = [view.getUint16(at + 5), view.getUint16(at + 7)];
    }
    const named = (text) => [...text].every((letter, i) => body[i] === letter.charCodeAt(0));
    if (marker === 0xe1 && named("Exif\0\0")) parts.exif ??= body.subarray(6);
    else if (marker === 0xe1 && named("http://ns.adobe.com/xap/")) parts.xmp ??= body;
    else if (marker === 0xe2 && named("MPF\0")) parts.several = true;
    // APP0 says how many dots an inch has, APP14 what the colours are.
    const kept = marker < 0xe1 || marker === 0xee || (marker > 0xef && marker !== 0xfe);
    if (kept) plain.push(data.subarray(at, at + 2 + length));
    at += 2 + length;
  }
  if (!parts.kind || !parts.width || !parts.height) throw new Unreadable("its header makes no sense");
  plain.push(data.subarray(at));
  let ended = false;
  for (let i = at; i + 1 < data.length; i += 1) {
    if (data[i] !== 0xff) continue;
    if (data[i + 1] === 0xda) parts.scans += 1;
    ended ||= data[i + 1] === 0xd9;
  }
  // A browser would fill up with grey what is missing.
  if (!ended) throw new Unreadable("it ends too early");
  return { ...parts, plain: joined(plain) };
}

/** All in one piece: Firefox takes no picture whose first piece has two bytes only. */
function joined(pieces) {
  const whole = new Uint8Array(pieces.reduce((sum, each) => sum + each.length, 0));
  let at = 0;
  for (const each of pieces) {
    whole.set(each, at);
    at += each.length;
  }
  return whole;
}

/** The orientation that EXIF or XMP states, 1 to 8; 1 where neither does. */
function orientationOf(exif, xmp) {
  try {
    if (exif) {
      const view = new DataView(exif.buffer, exif.byteOffset, exif.byteLength);
      const little = view.getUint16(0) === 0x4949;
      const at = view.getUint32(4, little);
      for (let i = 0; i < view.getUint16(at, little); i += 1) {
        const entry = at + 2 + 12 * i;
        if (view.getUint16(entry, little) === 0x0112) return view.getUint16(entry + 8, little);
      }
    }
  } catch {
    // Garbled EXIF does not spoil the pixels; it cannot say how they lie either.
  }
  const stated = xmp && /tiff:Orientation(?:="|>)([0-9])/.exec(new TextDecoder("latin1").decode(xmp));
  return stated ? Number(stated[1]) : 1;
}

// ------------------------------------------------------------------------------------------------------- DICOM

async function readDicomFilm(data, name, size, limits) {
  const decodeJpeg = async (frame, width, height) => {
    const rgba = await decoded(new Blob([jpegParts(frame).plain], { type: "image/jpeg" }), width, height);
    return everyFourth(rgba, width * height);
  };
  const { grey, film, ...said } = await readDicom(data, name, limits, { decodeJpeg, jpegHeader: jpegParts });
  return { ...filmOf(grey, size, { film }), ...said };
}

// ---------------------------------------------------------------------------------- what the browser decodes

/** Red, green, blue and opacity of a picture, over black. */
/** Four equal bytes for a pixel of a grey JPEG, without the way over a canvas; null where the browser does not give them. */
async function decodedGrey(data, width, height) {
  if (typeof ImageDecoder !== "function") return null;
  const decoder = new ImageDecoder({ data, type: "image/jpeg", colorSpaceConversion: "none" });
  try {
    const { image } = await decoder.decode();
    const pixels = new Uint8Array(image.allocationSize());
    const [{ offset, stride }] = await image.copyTo(pixels);
    const plain = /^(RGB|BGR)[AX]$/.test(image.format) && offset === 0 && stride === 4 * width;
    const fits = plain && image.codedWidth === width && image.codedHeight === height;
    image.close();
    return fits ? pixels : null;
  } catch {
    return null;
  } finally {
    decoder.close();
  }
}

async function decoded(blob, width, height) {
  const picture = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "premultiply" });
  if (picture.width !== width || picture.height !== height) throw new Unreadable("its header makes no sense");
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true, alpha: false });
  context.drawImage(picture, 0, 0);
  picture.close();
  const { data } = context.getImageData(0, 0, width, height);
  canvas.width = canvas.height = 0; // its memory is needed at once
  return data;
}

const readWebp = (data, name, size, limits) => readByBrowser(data, name, size, limits, webp(data));
const readBmp = (data, name, size, limits) => readByBrowser(data, name, size, limits, bmp(data));

async function readByBrowser(data, name, size, limits, { width, height, type, several = false, palette = false }) {
  checkSize(width, height, name, limits);
  const rgba = await decoded(new Blob([data], { type }), width, height);
  const made = fromRgb(rgba, width, height, 4);
  // A grey palette stands for grey itself, with no way by colours.
  if (palette && !made.colours) made.grey.values.forEach((_, i, values) => (values[i] = rgba[4 * i]));
  return filmOf(made.grey, size, { colours: made.colours, several });
}

function webp(data) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const type = "image/webp";
  if (data.length < 30) throw new Unreadable("it ends too early");
  if (view.getUint32(4, true) + 8 > data.length) throw new Unreadable("it ends too early");
  const kind = String.fromCharCode(...data.subarray(12, 16));
  if (kind === "VP8X") {
    const three = (at) => 1 + (data[at] | (data[at + 1] << 8) | (data[at + 2] << 16));
    return { width: three(24), height: three(27), type, several: Boolean(data[20] & 2) };
  }
  if (kind === "VP8L") {
    const bits = view.getUint32(21, true);
    return { width: 1 + (bits & 0x3fff), height: 1 + ((bits >> 14) & 0x3fff), type };
  }
  return { width: view.getUint16(26, true) & 0x3fff, height: view.getUint16(28, true) & 0x3fff, type };
}

function bmp(data) {
  if (data.length < 54) throw new Unreadable("it ends too early");
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  return { width: view.getInt32(18, true), height: Math.abs(view.getInt32(22, true)), type: "image/bmp", palette: view.getUint16(28, true) <= 8 };
}
