// A DICOM file as the grey film that a radiologist would see: pneumo_edge/dicom/, for the transfer syntaxes that are read
// here. dicom-parser finds the elements, jpeg-lossless-decoder-js decodes JPEG Lossless, the browser other JPEG of 8 bits.

import dicomParser from "./dicom-parser.js";
import { Decoder } from "./jpeg-lossless.js";
import { filmRange, rint } from "./levels.js";
import { refuse, Unreadable } from "./unreadable.js";
import { viewNamed } from "./unseen.js";

const [EXPLICIT, IMPLICIT, BIG] = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"];
const RLE = "1.2.840.10008.1.2.5";
const KINDS = {
  "1.2.840.10008.1.2.4.51": "JPEG (extended)",
  "1.2.840.10008.1.2.4.80": "JPEG-LS",
  "1.2.840.10008.1.2.4.81": "JPEG-LS",
  "1.2.840.10008.1.2.4.90": "JPEG 2000 Lossless",
  "1.2.840.10008.1.2.4.91": "JPEG 2000",
};
const MEANING = {
  CT: "computed tomography", DOC: "a document", ECG: "an electrocardiogram", IO: "X-ray of the teeth", MG: "mammography",
  MR: "magnetic resonance", NM: "nuclear medicine", OT: "something other than an X-ray", PR: "a presentation state",
  PT: "positron emission tomography", PX: "panoramic X-ray of the jaw", RF: "fluoroscopy", SR: "a report",
  US: "ultrasound", XA: "angiography", XC: "a photograph",
};
const CHEST = ["CHEST", "THORAX", "TORAX", "TORACE", "LUNG", "PULMO", "POUMON"];
const RAW = "the file holds raw detector values (FOR PROCESSING)";
const MOST_ENTRIES = 65536;
const MOST_WINDOWS = 1e6;
const MOST_SEQUENCE = 1 << 20;

const TAGS = {
  SOPClassUID: "x00080016", StudyDate: "x00080020", Modality: "x00080060", PresentationIntentType: "x00080068",
  PatientBirthDate: "x00100030", PatientAge: "x00101010", BodyPartExamined: "x00180015", ViewPosition: "x00185101",
  SamplesPerPixel: "x00280002", PhotometricInterpretation: "x00280004", NumberOfFrames: "x00280008", Rows: "x00280010",
  Columns: "x00280011", BitsAllocated: "x00280100", BitsStored: "x00280101", HighBit: "x00280102",
  PixelRepresentation: "x00280103", PixelPaddingValue: "x00280120", PixelPaddingRangeLimit: "x00280121",
  WindowCenter: "x00281050", WindowWidth: "x00281051", RescaleIntercept: "x00281052", RescaleSlope: "x00281053",
  VOILUTFunction: "x00281056", ModalityLUTSequence: "x00283000", LUTDescriptor: "x00283002", LUTData: "x00283006",
  VOILUTSequence: "x00283010", PresentationLUTShape: "x20500020", FloatPixelData: "x7fe00008",
  DoubleFloatPixelData: "x7fe00009", PixelData: "x7fe00010",
};

/** Whether a file is DICOM, from its first 132 bytes: the mark behind a preamble, or an element as old scanners began. */
export function isDicom(data) {
  if (data.length < 132) return false;
  if (String.fromCharCode(...data.subarray(128, 132)) === "DICM") return true;
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const explicit = hasType(data, 4);
  const length = explicit ? view.getUint16(6, true) : view.getUint32(4, true);
  const plausible = length <= 1024 && length % 2 === 0 && (explicit || length > 0);
  return plausible && [0x0002, 0x0008].includes(view.getUint16(0, true)) && view.getUint16(2, true) <= 0x0070;
}

const hasType = (data, at) => /^[A-Z]{2}$/.test(String.fromCharCode(data[at], data[at + 1]));

/** Reads a projection X-ray. `decodeJpeg` gives the grey levels of a JPEG of 8 bits, `jpegHeader` what its header says.
 *
 * Gives {grey, film, warnings, doubts, age, view}: 8 bits, and all grey levels with their window. */
export async function readDicom(data, name, limits, { decodeJpeg, jpegHeader }) {
  let ds;
  try {
    ds = new Elements(data);
    check(ds, name, limits);
    const stored = await storedValues(ds, name, decodeJpeg, jpegHeader);
    return shown(ds, stored, limits);
  } catch (error) {
    if ((error instanceof Unreadable && error.whole) || error instanceof RangeError) throw error;
    if (String(error).includes("deflate")) throw packedAs("Deflate", name);
    throw refuse(`${name} is a damaged DICOM file, its tags and its pixels do not fit: copy it again from where it came`);
  }
}

// ---------------------------------------------------------------------------------------------------- elements

class Elements {
  constructor(data, parsed = null, syntax = "") {
    const meta = String.fromCharCode(...data.subarray(128, 132)) === "DICM";
    const options = meta ? {} : { TransferSyntaxUID: hasType(data, 4) ? EXPLICIT : IMPLICIT };
    this.parsed = parsed ?? dicomParser.parseDicom(data, options);
    this.syntax = syntax || this.parsed.string("x00020010") || options.TransferSyntaxUID || "";
    this.mediaClass = parsed ? "" : this.parsed.string("x00020002") ?? "";
    this.data = data;
    this.little = this.syntax !== BIG;
  }

  element(keyword) {
    return this.parsed.elements[TAGS[keyword]];
  }

  has(keyword) {
    return this.element(keyword) !== undefined;
  }

  bytes(keyword) {
    const found = this.element(keyword);
    return found ? this.parsed.byteArray.subarray(found.dataOffset, found.dataOffset + found.length) : null;
  }

  /** The values of a text element, in capitals, with empty ones. */
  texts(keyword) {
    const bytes = this.bytes(keyword);
    if (!bytes) return [];
    const text = new TextDecoder("latin1").decode(bytes);
    return text.split("\\").map((each) => each.replace(/^[ \0]+|[ \0]+$/g, "").toUpperCase());
  }

  text(keyword) {
    return this.texts(keyword)[0] ?? "";
  }

  /** The values of a decimal or integer string, null for each that is no finite number. */
  numbers(keyword) {
    return this.texts(keyword).map((each) => {
      const number = /^[+-]?(\d+\.?\d*|\.\d+)(E[+-]?\d+)?$/.test(each) ? Number(each) : NaN;
      return Number.isFinite(number) ? number : null;
    });
  }

  /** 16-bit words as unsigned ones, whatever type the file gives them. */
  words(keyword) {
    const bytes = this.bytes(keyword) ?? new Uint8Array();
    const found = new Uint16Array(Math.ceil(bytes.length / 2));
    for (let i = 0; i < found.length; i += 1) {
      const [a, b] = [bytes[2 * i], bytes[2 * i + 1] ?? 0];
      found[i] = this.little ? a | (b << 8) : (a << 8) | b;
    }
    return found;
  }

  integer(keyword, otherwise) {
    const words = this.words(keyword);
    if (words.length) return words[0];
    if (otherwise === undefined) throw new Unreadable("no number");
    return otherwise;
  }

  items(keyword) {
    const found = this.element(keyword);
    if (!found) return [];
    if (found.length > MOST_SEQUENCE) throw new Unreadable("too large");
    return (found.items ?? []).map((item) => new Elements(this.data, item.dataSet, this.syntax));
  }
}

/** Refuses what is no single grey projection X-ray, before any pixel is decoded. */
function check(ds, name, { max_pixels: most }) {
  const modality = ds.text("Modality");
  if (modality && !["CR", "DX", "RG"].includes(modality)) {
    const code = /^[A-Z0-9]{2,16}$/.test(modality) ? modality : "(unreadable)";
    const meaning = code in MEANING ? ` (${MEANING[code]})` : "";
    throw refuse(`${name} has the DICOM modality ${code}${meaning}: give an X-ray of the chest, of modality CR, DX or RG`);
  }
  if (!ds.has("PixelData")) {
    if (ds.has("FloatPixelData") || ds.has("DoubleFloatPixelData")) {
      throw refuse(`${name} has pixels that are fractions, which are not read here: export it with 16 bits`);
    }
    throw refuse(
      `${name} is a DICOM file without pixel data: give the file that holds the film, or copy it again if it was cut off`,
    );
  }
  const frames = ds.numbers("NumberOfFrames")[0] || 1;
  if (frames > 1) throw refuse(`${name} has ${frames.toFixed(0)} frames, a film has one: export the frame that you want`);
  const photometric = ds.text("PhotometricInterpretation");
  if (ds.integer("SamplesPerPixel", 1) !== 1 || (photometric && !photometric.startsWith("MONOCHROME"))) {
    throw refuse(`${name} is a DICOM picture in colour, an X-ray is grey: give the film itself`);
  }
  const missing = ["PhotometricInterpretation", "Rows", "Columns", "BitsAllocated"].filter((tag) => !ds.has(tag));
  if (missing.length) throw refuse(`${name} is a damaged DICOM file, it lacks ${missing.join(", ")}: copy it again`);
  const [rows, columns] = [ds.integer("Rows"), ds.integer("Columns")];
  if (rows < 1 || columns < 1) throw new Unreadable("no pixels");
  if (rows * columns > most) {
    throw refuse(
      `${name} claims ${columns} x ${rows} pixels, more than any X-ray detector has: scale it down to ${Math.floor(most / 1e6)} million`,
    );
  }
  if (ds.integer("BitsStored", 1) > 16) {
    throw refuse(`${name} has more than 16 bits a pixel, an X-ray detector has fewer: export it again`);
  }
}

function remarksOn(ds) {
  const found = [];
  if (ds.text("NumberOfFrames") && ds.numbers("NumberOfFrames")[0] === null) {
    found.push("the file's number of frames is not a number; it was read as a single film");
  }
  if (!ds.text("Modality")) found.push("the file does not name its modality; the model has seen X-rays only");
  const part = ds.text("BodyPartExamined");
  if (part && !CHEST.some((word) => part.includes(word))) {
    const named = /^[A-Z0-9_ ]{1,16}$/.test(part) ? part : "another one than the chest";
    found.push(`the body part is ${named}; the model has seen chest films only`);
  }
  return found;
}

function forProcessing(ds) {
  const intent = ds.text("PresentationIntentType");
  if (intent) return intent === "FOR PROCESSING";
  const kind = ds.text("SOPClassUID") || ds.mediaClass;
  return [1, 2, 3].some((n) => kind === `1.2.840.10008.5.1.4.1.1.1.${n}.1`);
}

function ageInYears(ds) {
  const stated = /^(\d{1,3}) ?([DWMY]?)$/.exec(ds.text("PatientAge"));
  if (stated) return Number(stated[1]) / { D: 365.25, W: 52.18, M: 12, Y: 1 }[stated[2] || "Y"];
  const [born, taken] = ["PatientBirthDate", "StudyDate"].map((each) => {
    const [, ...parts] = /^(\d{4})(\d\d)(\d\d)$/.exec(ds.text(each)) ?? [];
    const [year, month, day] = parts.map(Number);
    const date = new Date(Date.UTC(year, month - 1, day));
    return parts.length && date.getUTCMonth() === month - 1 && date.getUTCDate() === day ? [year, month, day] : null;
  });
  if (!born || !taken) return null;
  const before = taken[1] < born[1] || (taken[1] === born[1] && taken[2] < born[2]);
  const years = taken[0] - born[0] - (before ? 1 : 0);
  return years >= 0 ? years : null;
}

// ------------------------------------------------------------------------------------------------------ pixels

/** {values, bits, width, height}: the stored bits of each word, with their sign (PS3.5 8.1.1, PS3.3 C.7.6.3.1). */
async function storedValues(ds, name, decodeJpeg, jpegHeader) {
  const [height, width] = [ds.integer("Rows"), ds.integer("Columns")];
  const element = ds.element("PixelData");
  const { words, holds } =
    element.hadUndefinedLength || element.encapsulatedPixelData
      ? await unpacked(ds, frame(ds, element), width, height, name, decodeJpeg, jpegHeader)
      : plain(ds, element, width * height, name);
  const stored = ds.integer("BitsStored", ds.integer("BitsAllocated"));
  if (stored < 1) throw new Unreadable("no bits");
  const high = ds.integer("HighBit", stored - 1);
  const below = stored <= high && high < holds ? high + 1 - stored : 0;
  const bits = Math.min(stored, holds - below);
  const signed = ds.integer("PixelRepresentation", 0) === 1;
  const values = new Int32Array(words.length);
  const up = 32 - below - bits;
  for (let i = 0; i < values.length; i += 1) {
    const top = words[i] << up;
    values[i] = signed ? top >> (32 - bits) : top >>> (32 - bits);
  }
  return { values, bits, signed, width, height };
}

function plain(ds, { dataOffset, length, vr }, count, name) {
  const allocated = ds.integer("BitsAllocated");
  if (![8, 16, 32].includes(allocated)) {
    throw refuse(`${name} has ${allocated} bits allocated for a pixel, which is not read here: export it with 16 bits allocated`);
  }
  const size = allocated >> 3;
  if (length < count * size || dataOffset + count * size > ds.data.length) throw new Unreadable("few pixels");
  const view = new DataView(ds.data.buffer, ds.data.byteOffset + dataOffset, length);
  const words = new (size === 1 ? Uint8Array : size === 2 ? Uint16Array : Uint32Array)(count);
  // Bytes lie in words, whose bytes are swapped (PS3.5 A.3).
  const swapped = size === 1 && !ds.little && vr === "OW";
  for (let i = 0; i < count; i += 1) {
    if (size === 1) words[i] = view.getUint8(swapped ? i ^ 1 : i);
    else words[i] = size === 2 ? view.getUint16(2 * i, ds.little) : view.getUint32(4 * i, ds.little);
  }
  return { words, holds: allocated };
}

/** The one frame of encapsulated pixel data; what the table of offsets says does not matter. */
function frame(ds, { dataOffset }) {
  const view = new DataView(ds.data.buffer, ds.data.byteOffset, ds.data.byteLength);
  const pieces = [];
  for (let at = dataOffset; at + 8 <= ds.data.length; ) {
    const [group, element, length] = [view.getUint16(at, true), view.getUint16(at + 2, true), view.getUint32(at + 4, true)];
    if (group === 0xfffe && element === 0xe0dd) break;
    if (group !== 0xfffe || element !== 0xe000 || at + 8 + length > ds.data.length) throw new Unreadable("no items");
    pieces.push(ds.data.subarray(at + 8, at + 8 + length));
    at += 8 + length;
  }
  // A single item cannot be the table: some writers leave that out.
  const kept = pieces.length > 1 ? pieces.slice(1) : pieces;
  const whole = new Uint8Array(kept.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of kept) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

const packedAs = (kind, name) =>
  refuse(`${name} is compressed as ${kind}, which is not read here: export it without compression`);

async function unpacked(ds, packed, width, height, name, decodeJpeg, jpegHeader) {
  if (packed[0] === 0xff && packed[1] === 0xd8) {
    const { kind, precision, width: w, height: h, components } = jpegHeader(packed);
    if (w !== width || h !== height || components !== 1) throw new Unreadable("another size");
    if (precision === 8 && ["baseline", "extended", "progressive"].includes(kind)) {
      return { words: await decodeJpeg(packed, width, height), holds: 8 };
    }
    if (kind !== "lossless") throw packedAs(kind === "LS" ? "JPEG-LS" : `JPEG (${kind})`, name);
    const words = new Decoder().decode(packed.buffer, packed.byteOffset, packed.byteLength);
    if (words?.length !== width * height) throw new Unreadable("another size");
    return { words, holds: precision };
  }
  if (ds.syntax === RLE) return runLengths(ds, packed, width * height);
  if (["", EXPLICIT, IMPLICIT, BIG].includes(ds.syntax)) {
    throw refuse(`${name} does not say how it is compressed: export it again, with file meta information`);
  }
  throw packedAs(KINDS[ds.syntax] ?? "an unknown syntax", name);
}

/** RLE: a segment for each byte of a word, the highest first, in PackBits (PS3.5 G). */
function runLengths(ds, packed, count) {
  const view = new DataView(packed.buffer, packed.byteOffset, packed.byteLength);
  const size = view.getUint32(0, true);
  const allocated = ds.integer("BitsAllocated");
  if (![8, 16, 32].includes(allocated) || size !== allocated >> 3) throw new Unreadable("another depth");
  const words = new (size === 1 ? Uint8Array : size === 2 ? Uint16Array : Uint32Array)(count);
  for (let segment = 0; segment < size; segment += 1) {
    let at = view.getUint32(4 + 4 * segment, true);
    const end = segment + 1 < size ? view.getUint32(8 + 4 * segment, true) : packed.length;
    let out = 0;
    while (out < count) {
      if (at >= end) throw new Unreadable("ends early");
      const head = packed[at];
      at += 1;
      if (head === 128) continue;
      const length = head < 128 ? head + 1 : 257 - head;
      if (at + (head < 128 ? length : 1) > end) throw new Unreadable("ends early");
      for (let i = 0; i < length && out < count; i += 1, out += 1) {
        words[out] = (words[out] << 8) | packed[head < 128 ? at + i : at];
      }
      at += head < 128 ? length : 1;
    }
  }
  return { words, holds: allocated };
}

// ------------------------------------------------------------------------------------------------- grey levels

/** What people and the model see: pneumo_edge/dicom/grey.py, over every value that there can be. */
function shown(ds, { values, bits, signed, width, height }, limits) {
  const remarks = remarksOn(ds);
  const { lowest, light, told } = lightOf(ds, values, bits, signed, remarks, limits);
  const clip = (share) => Math.min(Math.max(share, 0), 1);
  const looked = (Kind, table) => {
    const found = new Kind(values.length);
    for (let i = 0; i < values.length; i += 1) found[i] = table[values[i] - lowest];
    return { width, height, values: found };
  };
  const grey = looked(Uint8Array, light.map((share) => rint(255 * clip(share))));

  let deep = light;
  let [darkest, lightest] = [Infinity, -Infinity];
  for (const share of light) [darkest, lightest] = [Math.min(darkest, share), Math.max(lightest, share)];
  if (!(lightest - darkest < MOST_WINDOWS)) [deep, darkest, lightest] = [light.map(clip), 0, 1];
  const levels = Math.max(light.length - 1, 1);
  const scale = levels / (lightest - darkest || 1);
  const film = {
    ...looked(levels < 256 ? Uint8Array : Uint16Array, deep.map((share) => rint(scale * (share - darkest)))),
    levels,
    low: -scale * darkest,
    high: scale * (1 - darkest),
  };

  const doubts = [];
  if (forProcessing(ds)) {
    if (told) remarks.push(`${RAW}; the model has seen films made for viewing only`);
    else doubts.push(`${RAW} and neither window nor look-up table that tells how to show them`);
  }
  return { grey, film, warnings: remarks, doubts, age: ageInYears(ds), view: viewNamed(ds.text("ViewPosition")) };
}

/** The lowest stored value, how light each from it to the highest is, and whether the file tells that. */
function lightOf(ds, values, bits, signed, remarks, limits) {
  const padding = paddingOf(ds, signed);
  const isFilm = (value) => !padding || value < padding[0] || value > padding[1];
  let [lowest, highest] = [Infinity, -Infinity];
  for (const value of values) [lowest, highest] = [Math.min(lowest, value), Math.max(highest, value)];
  const counted = new Uint32Array(highest - lowest + 1);
  let body = 0;
  for (const value of values) {
    counted[value - lowest] += 1;
    if (isFilm(value)) body += 1;
  }
  const stored = Array.from({ length: counted.length }, (_, i) => lowest + i);
  const possible = signed ? [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] : [0, 2 ** bits - 1];
  const all = modality(Float64Array.from([...stored, ...possible]), signed, ds, remarks);
  const seenValues = all.subarray(0, counted.length);
  const ends = all.subarray(counted.length);
  let light = voi(seenValues, Math.min(...ends) < 0, ds, remarks);
  const told = light !== null;
  if (!told) {
    if (body) for (const value of stored) if (!isFilm(value)) counted[value - lowest] = 0;
    const first = counted.findIndex((count) => count > 0);
    const last = counted.length - 1 - counted.slice().reverse().findIndex((count) => count > 0);
    const [low, high] = bits > 8 ? filmRange(counted, limits.film_range) : [first, last];
    const seen = seenValues.subarray(low, high + 1);
    let [least, most] = [Infinity, -Infinity];
    for (const value of seen) [least, most] = [Math.min(least, value), Math.max(most, value)];
    light = seenValues.map((value) => (value - least) / (most - least || 1));
  }
  light = light.map((share) => (Number.isNaN(share) ? 0 : Math.min(Math.max(share, -Number.MAX_VALUE), Number.MAX_VALUE)));
  // In the digital X-ray module INVERSE goes with MONOCHROME1 and means the same inversion, not a second one.
  if (ds.text("PhotometricInterpretation") === "MONOCHROME1" || ds.text("PresentationLUTShape") === "INVERSE") {
    light = light.map((share) => 1 - share);
  }
  // Outside of the film is dark, whichever way round the film is stored.
  if (padding) light = light.map((share, i) => (isFilm(lowest + i) ? share : 0));
  return { lowest, light, told };
}

const withSign = (word, signed) => (signed && word >= 32768 ? word - 65536 : word);

function paddingOf(ds, signed) {
  const value = ds.words("PixelPaddingValue");
  if (!value.length) return null;
  const limit = ds.words("PixelPaddingRangeLimit");
  const ends = [value, limit].filter((end) => end.length).map((end) => withSign(end[0], signed));
  return [Math.min(...ends), Math.max(...ends)];
}

/** The modality LUT or, without one, slope and intercept (PS3.3 C.11.1). */
function modality(values, signed, ds, remarks) {
  const table = tableOf(ds, "ModalityLUTSequence", signed, "modality", remarks);
  if (table) return lookUp(values, table);
  if (!ds.text("RescaleSlope") && !ds.text("RescaleIntercept")) return values;
  const [slope, intercept] = ["RescaleSlope", "RescaleIntercept"].map((each) => ds.numbers(each)[0] ?? null);
  if (slope === null || intercept === null || slope === 0) {
    const why = slope === 0 ? "slope is 0" : "slope or intercept is missing or not a number";
    remarks.push(`the file's rescale ${why}; both were ignored`);
    return values;
  }
  return values.map((value) => slope * value + intercept);
}

/** 0 (black) to 1 (white) by the VOI LUT or the first usable window (PS3.3 C.11.2), null without either. */
function voi(values, signed, ds, remarks) {
  const table = tableOf(ds, "VOILUTSequence", signed, "VOI", remarks);
  if (table) return lookUp(values, table).map((entry) => entry / (2 ** table.bits - 1));
  const kind = ds.text("VOILUTFunction");
  if (!["", "LINEAR", "LINEAR_EXACT", "SIGMOID"].includes(kind)) {
    remarks.push("the file's window has an unknown function; it was taken as linear");
  }
  const exact = kind === "LINEAR_EXACT";
  const narrowest = exact || kind === "SIGMOID" ? 0 : 1;
  const [centres, widths] = ["WindowCenter", "WindowWidth"].map((each) => ds.numbers(each));
  for (let n = 0; n < Math.min(centres.length, widths.length); n += 1) {
    const [centre, width] = [centres[n], widths[n]];
    if (centre === null || width === null || width <= 0 || width < narrowest) continue;
    if (n) remarks.push("the file's first window cannot be used; the next one was");
    if (kind === "SIGMOID") return values.map((value) => 1 / (1 + Math.exp((-4 * (value - centre)) / width)));
    if (exact) return values.map((value) => (value - centre) / width + 0.5);
    if (width === 1) return values.map((value) => Number(value > centre - 0.5));
    return values.map((value) => (value - (centre - 0.5)) / (width - 1) + 0.5);
  }
  if ([...ds.texts("WindowCenter"), ...ds.texts("WindowWidth")].some(Boolean)) {
    remarks.push("the file's window cannot be used and was ignored");
  }
  return null;
}

/** Values below the first get the first entry, values behind the last get the last (PS3.3 C.11.1.1.1). */
function lookUp(values, { entries, first }) {
  return values.map((value) => entries[Math.min(Math.max(rint(value - first), 0), entries.length - 1)]);
}

/** The first usable table of a LUT sequence: {entries, first, bits}. */
function tableOf(ds, keyword, signed, kind, remarks) {
  let stated = false;
  try {
    for (const item of ds.items(keyword)) {
      stated = true;
      const found = entriesOf(item, signed);
      if (found) return found;
    }
  } catch {
    stated = true;
  }
  if (stated) remarks.push(`the file's ${kind} look-up table cannot be used and was ignored`);
  return null;
}

/** One table; where descriptor and data disagree, pneumo_edge/dicom/grey.py says which is right. */
function entriesOf(item, signed) {
  const descriptor = item.words("LUTDescriptor");
  let data = item.words("LUTData").subarray(0, MOST_ENTRIES);
  if (descriptor.length !== 3 || !data.length) return null;
  const [stated, first, bits] = descriptor;
  const count = stated || MOST_ENTRIES;
  const most = () => data.reduce((a, b) => Math.max(a, b), 0);
  if (data.length === (count + 1) >> 1 && data.length < count && !(bits > 8 && bits < 16 && most() >> bits === 0)) {
    // The lower half of a word comes first.
    data = Uint16Array.from({ length: count }, (_, i) => (i % 2 ? data[i >> 1] >> 8 : data[i >> 1] & 255));
  } else if (count < data.length && data.subarray(count).every((entry) => !entry) && data[count - 1] >= data[0]) {
    data = data.subarray(0, count);
  }
  const needed = 32 - Math.clz32(most());
  return { entries: data, first: withSign(first, signed), bits: needed <= bits && bits < 16 ? bits : Math.max(needed, 1) };
}
