// A film of a camera path, made in the browser: every picture is drawn exactly, encoded by the browser's own encoder, and put into an MP4.

import { between } from "../pose.js";

const FPS = 30;
const TICKS = 1000; // of the MP4's clock per picture
const BITS_PER_PIXEL = 0.2;
const KEY_EVERY = 60;
// H.264 first, because everything plays it; the levels allow 4K.
const CODECS = ["avc1.640034", "avc1.4d0034", "avc1.420034", "vp09.00.51.08"];

/** Whether this browser can encode at all. */
export const canFilm = "VideoEncoder" in globalThis;

/**
 * Films a path.
 *
 * @param viewer draws the pictures
 * @param {{poses: object[], seconds: number}} path
 * @param {number[]} size [width, height], even
 * @param {(share: number) => boolean} going told how far it is, 0..1; false ends it
 * @returns {Promise<Blob|null>} an MP4; null if it was ended
 */
export async function film(viewer, path, size, going) {
  const [width, height] = size, count = Math.max(2, Math.round(path.seconds * FPS));
  const settings = await supported(width, height), samples = [];
  let described = null, failed = null;
  const encoder = new VideoEncoder({
    output(chunk, more) {
      described ??= more?.decoderConfig?.description ?? null;
      const bytes = new Uint8Array(chunk.byteLength);
      chunk.copyTo(bytes);
      samples.push({ bytes, key: chunk.type === "key", at: Math.round((chunk.timestamp * FPS) / 1e6) });
    },
    error(problem) { failed = problem; },
  });
  encoder.configure(settings);
  try {
    for (let i = 0; i < count; i++) {
      if (!going(i / count)) return null;
      if (failed) throw failed;
      const pixels = viewer.renderPixels(poseAt(path, i / (count - 1)), width, height);
      const times = { timestamp: Math.round((1e6 * i) / FPS), duration: Math.round(1e6 / FPS) };
      const picture = new VideoFrame(pixels, { format: "RGBA", codedWidth: width, codedHeight: height, ...times });
      encoder.encode(picture, { keyFrame: i % KEY_EVERY === 0 });
      picture.close();
      await new Promise((done) => setTimeout(done)); // the page stays alive
      while (encoder.encodeQueueSize > 4) await new Promise((done) => setTimeout(done, 5));
    }
    await encoder.flush();
    if (failed) throw failed;
    going(1);
    return new Blob(mp4(samples, settings.codec, described && new Uint8Array(described), width, height), { type: "video/mp4" });
  } finally {
    if (encoder.state !== "closed") encoder.close();
  }
}

async function supported(width, height) {
  for (const codec of CODECS) {
    const settings = { codec, width, height, framerate: FPS, bitrate: Math.round(BITS_PER_PIXEL * width * height * FPS), latencyMode: "quality" };
    if (codec.startsWith("avc1")) settings.avc = { format: "avc" };
    if ((await VideoEncoder.isConfigSupported(settings).catch(() => ({}))).supported) return settings;
  }
  throw new Error(`this browser encodes no film of ${width} x ${height}`);
}

/** The pose at a share 0..1 of a path. */
export function poseAt({ poses }, share) {
  const at = share * (poses.length - 1), i = Math.min(Math.floor(at), poses.length - 1), next = Math.min(i + 1, poses.length - 1);
  return between(poses[i], poses[next], at - i);
}

// ISO/IEC 14496-12: boxes of a length, a name and content.

const u16 = (...values) => Uint8Array.from(values.flatMap((v) => [(v >> 8) & 255, v & 255]));
const u32 = (...values) => Uint8Array.from(values.flatMap((v) => [(v >>> 24) & 255, (v >>> 16) & 255, (v >>> 8) & 255, v & 255]));
const text = (words) => new TextEncoder().encode(words);

function box(name, ...parts) {
  const size = parts.reduce((sum, part) => sum + part.length, 8), out = new Uint8Array(size);
  out.set(u32(size));
  out.set(text(name), 4);
  let at = 8;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

const MATRIX = u32(0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000);

function mp4(samples, codec, description, width, height) {
  const head = box("ftyp", text("isom"), u32(512), text("isomiso2mp41"));
  const length = moov(samples, codec, description, width, height, 0).length, data = head.length + length + 8;
  const total = samples.reduce((sum, s) => sum + s.bytes.length, 8);
  return [head, moov(samples, codec, description, width, height, data), u32(total), text("mdat"), ...samples.map((s) => s.bytes)];
}

function moov(samples, codec, description, width, height, data) {
  const count = samples.length, clock = FPS * TICKS, lasts = count * TICKS;
  const entry = [u16(0, 0, 0, 1), u32(0, 0, 0, 0), u16(width, height), u32(0x480000, 0x480000, 0), u16(1), new Uint8Array(32), u16(24, 0xffff)];
  const avc = codec.startsWith("avc1");
  // vp09 profile 0: level 5.1, 8 bits, 4:2:0, BT.709, limited range
  const how = avc ? box("avcC", description) : box("vpcC", u32(0x1000000), Uint8Array.from([0, 51, 0x82, 1, 1, 1, 0, 0]));
  const shifted = samples.some((s, i) => s.at !== i);
  const stbl = box("stbl",
    box("stsd", u32(0, 1), box(avc ? "avc1" : "vp09", ...entry, how)),
    box("stts", u32(0, 1, count, TICKS)),
    ...(shifted ? [box("ctts", u32(0x1000000, count, ...samples.flatMap((s, i) => [1, (s.at - i) * TICKS])))] : []),
    box("stss", u32(0, samples.filter((s) => s.key).length, ...samples.flatMap((s, i) => (s.key ? [i + 1] : [])))),
    box("stsc", u32(0, 1, 1, count, 1)),
    box("stsz", u32(0, 0, count, ...samples.map((s) => s.bytes.length))),
    box("stco", u32(0, 1, data)));
  const track = box("trak",
    box("tkhd", u32(3, 0, 0, 1, 0, lasts, 0, 0, 0, 0), MATRIX, u32(width << 16, height << 16)),
    box("mdia",
      box("mdhd", u32(0, 0, 0, clock, lasts), u16(0x55c4, 0)),
      box("hdlr", u32(0, 0), text("vide"), u32(0, 0, 0), text("film\0")),
      box("minf", box("vmhd", u32(1, 0, 0)), box("dinf", box("dref", u32(0, 1), box("url ", u32(1)))), stbl)));
  return box("moov", box("mvhd", u32(0, 0, 0, clock, lasts, 0x10000, 0x1000000, 0, 0), MATRIX, u32(0, 0, 0, 0, 0, 0, 2)), track);
}
