// Reads splat files in the browser into the tables that the renderer uploads. Formats: PLY (float32), .splat, SPZ 2 and 3.
//
// World axes are those of the PLY: x right, y down, z forward. SPZ files are right-up-back and are turned on reading.
// Harmonics follow the exchanged files' signs; opacities are kept as values 0..1, scales as logarithms, quaternions as wxyz.

const SPZ_MAGIC = 0x5053474e;
const GZIP = 0x1f8b;
// Signs of the harmonics of degree 1 to 3 under (x, y, z) -> (x, -y, -z).
const FLIPPED = [-1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1];
const C0 = 0.28209479177387814;

/**
 * Splats as the renderer wants them.
 *
 * means: Float32Array(3 n). geometry: Uint32Array(8 n): position as float bits, a free word; quaternion wxyz as four signed
 * 16-bit shares of 1, log scales and opacity as four half floats. harmonics: Uint32Array(4 k n), half floats in the order
 * coefficient, channel. k texels of four words per splat, see `texelsOf`.
 */
export class SplatTable {
  constructor(count, degree) {
    this.count = count;
    this.degree = degree;
    this.texels = texelsOf(degree);
    this.means = new Float32Array(3 * count);
    this.radii = new Float32Array(count); // the middle one of the three axes
    this.opacities = new Float32Array(count);
    this.geometry = new Uint32Array(8 * count);
    this.harmonics = new Uint32Array(4 * this.texels * count);
    this._floats = new Float32Array(this.geometry.buffer);
    this._shorts = new Uint16Array(this.harmonics.buffer);
  }

  place(i, x, y, z) {
    this.means.set([x, y, z], 3 * i);
    this._floats.set([x, y, z], 8 * i);
  }

  turn(i, w, x, y, z) {
    const scale = 32767 / Math.max(Math.hypot(w, x, y, z), 1e-12);
    const g = this.geometry, at = 8 * i + 4;
    g[at] = (Math.round(w * scale) & 0xffff) | (Math.round(x * scale) << 16);
    g[at + 1] = (Math.round(y * scale) & 0xffff) | (Math.round(z * scale) << 16);
  }

  shape(i, a, b, c, opacity) {
    const g = this.geometry, at = 8 * i + 6;
    this.radii[i] = Math.exp(a + b + c - Math.max(a, b, c) - Math.min(a, b, c));
    this.opacities[i] = opacity;
    g[at] = half(a) | (half(b) << 16);
    g[at + 1] = half(c) | (half(opacity) << 16);
  }

  /** Coefficient `b`, channel `c` of splat i. */
  colour(i, b, c, value) {
    this._shorts[8 * this.texels * i + 3 * b + c] = half(value);
  }
}

/** Texels of eight half floats for the harmonics of one splat. */
export function texelsOf(degree) {
  return [1, 2, 4, 6][degree];
}

const _one = new Float32Array(1);
const _bits = new Uint32Array(_one.buffer);

/** A half float's 16 bits, rounded to nearest; too large values become the largest. */
export function half(value) {
  _one[0] = value;
  const sign = (_bits[0] >>> 16) & 0x8000, rest = _bits[0] & 0x7fffffff;
  if (rest >= 0x477fe000) return sign | 0x7bff;
  if (rest < 0x38800000) return sign | Math.round(Math.abs(_one[0]) * 16777216);
  return sign | ((rest + 0x1000 - 0x38000000) >>> 13);
}

/**
 * The splats of a file.
 *
 * @param {ArrayBuffer} buffer the whole file
 * @param {number} maxDegree harmonics beyond are left out
 * @returns {Promise<SplatTable>}
 * @throws {Error} a format this viewer does not know
 */
export async function readSplats(buffer, maxDegree = 3) {
  const head = new Uint8Array(buffer, 0, Math.min(4, buffer.byteLength));
  if (String.fromCharCode(...head.slice(0, 3)) === "ply") return readPly(buffer, maxDegree);
  if (((head[0] << 8) | head[1]) === GZIP) {
    const stream = new Blob([buffer]).stream().pipeThrough(new DecompressionStream("gzip"));
    return readSpz(await new Response(stream).arrayBuffer(), maxDegree);
  }
  if (buffer.byteLength && buffer.byteLength % 32 === 0) return readSplat(buffer);
  throw new Error("not a splat file this viewer knows: PLY, .splat, or SPZ version 2 or 3");
}

function readPly(buffer, maxDegree) {
  const text = new TextDecoder("latin1").decode(buffer.slice(0, 65536));
  const end = text.indexOf("end_header\n");
  const lines = text.slice(0, end).split("\n").map((line) => line.trim().split(/\s+/));
  if (end < 0 || lines[1][1] !== "binary_little_endian") throw new Error("the PLY is not binary little endian");
  const count = Number(lines.find((l) => l[0] === "element" && l[1] === "vertex")[2]);
  const properties = lines.filter((l) => l[0] === "property");
  if (properties.some((p) => p[1] !== "float")) throw new Error("the PLY has properties that are not float32");
  const names = properties.map((p) => p[2]);
  const column = (name) => names.indexOf(name);
  const rest = names.filter((n) => n.startsWith("f_rest_")).length / 3;
  const stored = Math.round(Math.sqrt(rest + 1)) - 1;
  const table = new SplatTable(count, Math.min(stored, maxDegree));
  const rows = new Float32Array(buffer.slice(end + 11, end + 11 + 4 * names.length * count));
  const [x, o, s, r, dc, more] = ["x", "opacity", "scale_0", "rot_0", "f_dc_0", "f_rest_0"].map(column);
  const bands = (table.degree + 1) ** 2;
  for (let i = 0, at = 0; i < count; i++, at += names.length) {
    table.place(i, rows[at + x], rows[at + x + 1], rows[at + x + 2]);
    table.turn(i, rows[at + r], rows[at + r + 1], rows[at + r + 2], rows[at + r + 3]);
    table.shape(i, rows[at + s], rows[at + s + 1], rows[at + s + 2], 1 / (1 + Math.exp(-rows[at + o])));
    for (let c = 0; c < 3; c++) {
      table.colour(i, 0, c, rows[at + dc + c]);
      for (let b = 1; b < bands; b++) table.colour(i, b, c, rows[at + more + c * rest + b - 1]);
    }
  }
  return table;
}

function readSplat(buffer) {
  const count = buffer.byteLength / 32, floats = new Float32Array(buffer), bytes = new Uint8Array(buffer);
  const table = new SplatTable(count, 0);
  for (let i = 0; i < count; i++) {
    const f = 8 * i, b = 32 * i;
    table.place(i, floats[f], floats[f + 1], floats[f + 2]);
    table.turn(i, bytes[b + 28] - 128, bytes[b + 29] - 128, bytes[b + 30] - 128, bytes[b + 31] - 128);
    table.shape(i, ...[3, 4, 5].map((k) => Math.log(floats[f + k])), bytes[b + 27] / 255);
    for (let c = 0; c < 3; c++) table.colour(i, 0, c, (bytes[b + 24 + c] / 255 - 0.5) / C0);
  }
  return table;
}

function readSpz(raw, maxDegree) {
  const view = new DataView(raw), bytes = new Uint8Array(raw);
  const version = view.getUint32(4, true);
  if (view.getUint32(0, true) !== SPZ_MAGIC || version < 2 || version > 3) throw new Error("not an SPZ file of version 2 or 3");
  const count = view.getUint32(8, true), stored = bytes[12], step = 1 / 2 ** bytes[13];
  const table = new SplatTable(count, Math.min(stored, maxDegree));
  const rest = (stored + 1) ** 2 - 1, kept = (table.degree + 1) ** 2 - 1;
  const sizes = [9, 1, 3, 3, version === 2 ? 3 : 4, 3 * rest];
  const starts = sizes.map((_, k) => 16 + count * sizes.slice(0, k).reduce((a, b) => a + b, 0));
  const [positions, alphas, colours, scales, turns, harmonics] = starts;
  const fixed = (at) => ((bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16)) << 8) >> 8;
  for (let i = 0; i < count; i++) {
    const p = positions + 9 * i, s = scales + 3 * i;
    table.place(i, fixed(p) * step, -fixed(p + 3) * step, -fixed(p + 6) * step);
    table.shape(i, bytes[s] / 16 - 10, bytes[s + 1] / 16 - 10, bytes[s + 2] / 16 - 10, bytes[alphas + i] / 255);
    const [x, y, z, w] = version === 2 ? firstThree(bytes, turns + 3 * i) : smallestThree(view.getUint32(turns + 4 * i, true));
    table.turn(i, w, x, -y, -z);
    for (let c = 0; c < 3; c++) {
      table.colour(i, 0, c, (bytes[colours + 3 * i + c] / 255 - 0.5) / 0.15);
      for (let b = 0; b < kept; b++) {
        table.colour(i, b + 1, c, (FLIPPED[b] * (bytes[harmonics + 3 * (rest * i + b) + c] - 128)) / 128);
      }
    }
  }
  return table;
}

function firstThree(bytes, at) {
  const [x, y, z] = [0, 1, 2].map((k) => bytes[at + k] / 127.5 - 1);
  return [x, y, z, Math.sqrt(Math.max(0, 1 - x * x - y * y - z * z))];
}

function smallestThree(word) {
  const largest = word >>> 30, quat = [0, 0, 0, 0];
  let sum = 0;
  for (let k = 3; k >= 0; k--) {
    if (k === largest) continue;
    quat[k] = ((word & 511) / 511) * Math.SQRT1_2 * (word & 512 ? -1 : 1);
    sum += quat[k] ** 2;
    word >>>= 10;
  }
  quat[largest] = Math.sqrt(Math.max(0, 1 - sum));
  return quat;
}
