// How many of the clip's frames look at each splat: where the world is seen by few, it is a guess.

import { invert } from "../pose.js";

const STEPS = 24;
// Red where nothing but one or two frames look, over yellow to green.
const RAMP = [[0.84, 0.15, 0.24], [0.96, 0.64, 0.35], [0.94, 0.89, 0.26], [0.3, 0.73, 0.39]];

export const COVERAGE_PALETTE = Array.from({ length: STEPS }, (_, i) => {
  const at = (i / (STEPS - 1)) * (RAMP.length - 1), k = Math.min(Math.floor(at), RAMP.length - 2), t = at - k;
  return [...RAMP[k].map((v, c) => v + t * (RAMP[k + 1][c] - v)), 0.65];
});

/** Row of the palette per splat: its share of the frames whose picture holds its centre. */
export function coverage(table, cameras) {
  const { means } = table, count = means.length / 3, seen = new Uint16Array(count);
  for (const { c2w, fx, fy, cx, cy, width, height } of cameras) {
    const m = invert(c2w);
    for (let i = 0; i < count; i++) {
      const x = means[3 * i], y = means[3 * i + 1], z = means[3 * i + 2];
      const depth = m[8] * x + m[9] * y + m[10] * z + m[11];
      if (depth <= 0) continue;
      const u = cx + (fx * (m[0] * x + m[1] * y + m[2] * z + m[3])) / depth, v = cy + (fy * (m[4] * x + m[5] * y + m[6] * z + m[7])) / depth;
      if (u >= 0 && u < width && v >= 0 && v < height) seen[i]++;
    }
  }
  return Uint8Array.from(seen, (n) => Math.round(Math.min(1, n / (0.6 * cameras.length)) * (STEPS - 1)));
}
