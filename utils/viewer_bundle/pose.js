// Camera poses for the viewer. A pose is {c2w, fov}: c2w is camera-to-world as 16 numbers, rows first, in the axes of OpenCV
// (x right, y down, z forward); fov is the vertical field of view in radians.

export const add = (a, b, s = 1) => [a[0] + s * b[0], a[1] + s * b[1], a[2] + s * b[2]];
export const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
export const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
export const length = (a) => Math.hypot(...a);
export const unit = (a) => a.map((v) => v / Math.max(length(a), 1e-12));

/** Column k of the rotation, or of the translation for k = 3. */
export const axis = (c2w, k) => [c2w[k], c2w[4 + k], c2w[8 + k]];

export function compose(right, down, forward, position) {
  const [r, d, f, p] = [right, down, forward, position];
  return [r[0], d[0], f[0], p[0], r[1], d[1], f[1], p[1], r[2], d[2], f[2], p[2], 0, 0, 0, 1];
}

/** The rigid inverse, rows first. */
export function invert(c2w) {
  const p = axis(c2w, 3);
  return [0, 1, 2].flatMap((k) => [...axis(c2w, k), -dot(axis(c2w, k), p)]).concat([0, 0, 0, 1]);
}

/** A camera at `eye` that looks at `target` with `up` upwards in the picture. */
export function lookAt(eye, target, up) {
  const forward = unit(add(target, eye, -1));
  let right = cross(forward, up);
  if (length(right) < 1e-6) right = cross(forward, Math.abs(forward[0]) < 0.9 ? [1, 0, 0] : [0, 1, 0]);
  right = unit(right);
  return compose(right, cross(forward, right), forward, eye);
}

/** The vector turned by `angle` about the unit axis `k` (Rodrigues). */
export function rotate(v, k, angle) {
  const c = Math.cos(angle), s = Math.sin(angle), along = dot(k, v) * (1 - c), side = cross(k, v);
  return [0, 1, 2].map((i) => v[i] * c + side[i] * s + k[i] * along);
}

/** The camera turned about an axis through `centre`. */
export function turnAbout(c2w, centre, k, angle) {
  const [right, down, forward] = [0, 1, 2].map((i) => rotate(axis(c2w, i), k, angle));
  return compose(right, down, forward, add(centre, rotate(add(axis(c2w, 3), centre, -1), k, angle)));
}

export function quaternion(c2w) {
  const m = (r, c) => c2w[4 * r + c];
  const w = Math.sqrt(Math.max(0, 1 + m(0, 0) + m(1, 1) + m(2, 2))) / 2;
  const size = (a, b, c) => Math.sqrt(Math.max(0, 1 + a - b - c)) / 2;
  const x = size(m(0, 0), m(1, 1), m(2, 2)), y = size(m(1, 1), m(0, 0), m(2, 2)), z = size(m(2, 2), m(0, 0), m(1, 1));
  const big = Math.max(w, x, y, z), f = 1 / (4 * big);
  if (big === w) return [w, (m(2, 1) - m(1, 2)) * f, (m(0, 2) - m(2, 0)) * f, (m(1, 0) - m(0, 1)) * f];
  if (big === x) return [(m(2, 1) - m(1, 2)) * f, x, (m(0, 1) + m(1, 0)) * f, (m(0, 2) + m(2, 0)) * f];
  if (big === y) return [(m(0, 2) - m(2, 0)) * f, (m(0, 1) + m(1, 0)) * f, y, (m(1, 2) + m(2, 1)) * f];
  return [(m(1, 0) - m(0, 1)) * f, (m(0, 2) + m(2, 0)) * f, (m(1, 2) + m(2, 1)) * f, z];
}

/** A pose between two, 0 <= t <= 1: positions in a line, rotations along the shortest arc. */
export function between(from, to, t) {
  const a = quaternion(from.c2w);
  let b = quaternion(to.c2w), cosine = a.reduce((sum, v, i) => sum + v * b[i], 0);
  if (cosine < 0) [b, cosine] = [b.map((v) => -v), -cosine];
  const angle = Math.acos(Math.min(1, cosine));
  const [u, v] = angle < 1e-4 ? [1 - t, t] : [Math.sin((1 - t) * angle) / Math.sin(angle), Math.sin(t * angle) / Math.sin(angle)];
  const [w, x, y, z] = a.map((q, i) => u * q + v * b[i]);
  const n = w * w + x * x + y * y + z * z;
  const columns = [
    [1 - (2 * (y * y + z * z)) / n, (2 * (x * y + w * z)) / n, (2 * (x * z - w * y)) / n],
    [(2 * (x * y - w * z)) / n, 1 - (2 * (x * x + z * z)) / n, (2 * (y * z + w * x)) / n],
    [(2 * (x * z + w * y)) / n, (2 * (y * z - w * x)) / n, 1 - (2 * (x * x + y * y)) / n],
  ];
  const start = axis(from.c2w, 3);
  const position = add(start, add(axis(to.c2w, 3), start, -1), t);
  return { c2w: compose(...columns, position), fov: from.fov + t * (to.fov - from.fov) };
}

// In narrow windows a camera's picture is cut at the sides rather than showing much that the camera did not see above and below.
const TALLEST = 1.6;

/** Pose of a camera {c2w, fx, fy, cx, cy, width, height} whose field of view shows its picture in a window of this aspect. */
export function poseOf(camera, aspect) {
  const tall = Math.max(camera.cy, camera.height - camera.cy) / camera.fy;
  const wide = Math.max(camera.cx, camera.width - camera.cx) / camera.fx;
  return { c2w: camera.c2w, fov: 2 * Math.atan(Math.max(tall, Math.min(wide / aspect, TALLEST * tall))) };
}
