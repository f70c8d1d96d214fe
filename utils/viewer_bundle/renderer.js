// Draws splats with WebGL 2: one quad per splat, far to near, EWA splatting (Zwicker et al. 2001) as in the project's own
// rasteriser: the same kernel, the same 0.3 pixels squared of low-pass filter, the same smallest and largest opacity.
//
// Colours are summed in half floats where the browser can, so that hundreds of faint layers do not band.

import { invert } from "./pose.js";

const WIDTH = 4096;

const VERTEX = `#version 300 es
precision highp float;
precision highp int;
precision highp usampler2D;
uniform usampler2D geometry, harmonics, tints;
uniform sampler2D palette;
uniform mat4 w2c;
uniform vec3 eye;
uniform vec2 focal, centre, size;
uniform float near;
uniform bool tinted;
in uint index;
out vec4 colour;
out vec2 at;

uvec4 texel(usampler2D table, uint i) { return texelFetch(table, ivec2(i & 4095u, i >> 12), 0); }

void halves(uint first, int count, out vec3 sh[8]) {
  uvec4 a = texel(harmonics, first), b = count > 1 ? texel(harmonics, first + 1u) : uvec4(0), c = count > 2 ? texel(harmonics, first + 2u) : uvec4(0);
  vec2 h[12] = vec2[12](unpackHalf2x16(a.x), unpackHalf2x16(a.y), unpackHalf2x16(a.z), unpackHalf2x16(a.w),
    unpackHalf2x16(b.x), unpackHalf2x16(b.y), unpackHalf2x16(b.z), unpackHalf2x16(b.w),
    unpackHalf2x16(c.x), unpackHalf2x16(c.y), unpackHalf2x16(c.z), unpackHalf2x16(c.w));
  for (int k = 0; k < 4; k++) {
    sh[2 * k] = vec3(h[3 * k], h[3 * k + 1].x);
    sh[2 * k + 1] = vec3(h[3 * k + 1].y, h[3 * k + 2]);
  }
}

vec3 shaded(uint i, vec3 d) {
  vec3 sh[8];
  uint first = i * uint(TEXELS);
  halves(first, TEXELS, sh);
  vec3 c = 0.5 + 0.28209479177387814 * sh[0];
#if DEGREE >= 1
  float x = d.x, y = d.y, z = d.z;
  c += 0.4886025119029199 * (-y * sh[1] + z * sh[2] - x * sh[3]);
#endif
#if DEGREE >= 2
  float xx = x * x, yy = y * y, zz = z * z;
  c += 1.0925484305920792 * (x * y * sh[4] - y * z * sh[5] - x * z * sh[7]) + 0.31539156525252005 * (2.0 * zz - xx - yy) * sh[6];
  vec3 more[8];
  halves(first + 3u, TEXELS - 3, more);
  c += 0.5462742152960396 * (xx - yy) * more[0];
#endif
#if DEGREE >= 3
  c += -0.5900435899266435 * (y * (3.0 * xx - yy) * more[1] + x * (xx - 3.0 * yy) * more[7])
    + 2.890611442640554 * x * y * z * more[2] - 0.4570457994644658 * (4.0 * zz - xx - yy) * (y * more[3] + x * more[5])
    + 0.3731763325901154 * z * (2.0 * zz - 3.0 * xx - 3.0 * yy) * more[4] + 1.445305721320277 * z * (xx - yy) * more[6];
#endif
  return max(c, 0.0);
}

void main() {
  gl_Position = vec4(0, 0, 2, 1);
  uvec4 first = texel(geometry, 2u * index), second = texel(geometry, 2u * index + 1u);
  vec3 mean = uintBitsToFloat(first.xyz);
  vec3 p = (w2c * vec4(mean, 1)).xyz;
  vec2 ab = unpackHalf2x16(second.z), cd = unpackHalf2x16(second.w);
  float opacity = cd.y;
  if (p.z <= near || opacity < 1.0 / 255.0) return;

  vec4 q = normalize(vec4(unpackSnorm2x16(second.x), unpackSnorm2x16(second.y)));
  float w = q.x, x = q.y, y = q.z, z = q.w;
  mat3 turn = mat3(1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y),
    2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x),
    2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y));
  vec3 s = exp(vec3(ab, cd.x));
  mat3 axes = mat3(w2c) * mat3(turn[0] * s.x, turn[1] * s.y, turn[2] * s.z);
  vec2 margin = 0.15 * size / focal;
  vec2 ratio = clamp(p.xy / p.z, -centre / focal - margin, (size - centre) / focal + margin);
  vec3 row_z = vec3(axes[0].z, axes[1].z, axes[2].z);
  vec3 row_x = focal.x / p.z * (vec3(axes[0].x, axes[1].x, axes[2].x) - ratio.x * row_z);
  vec3 row_y = focal.y / p.z * (vec3(axes[0].y, axes[1].y, axes[2].y) - ratio.y * row_z);
  float a = dot(row_x, row_x) + 0.3, c = dot(row_y, row_y) + 0.3, b = dot(row_x, row_y);

  float mean_variance = 0.5 * (a + c), difference = length(vec2(0.5 * (a - c), b));
  float large = mean_variance + difference, small = max((a * c - b * b) / large, 1e-3);
  vec2 along = difference < 1e-6 * large ? vec2(1, 0) : a >= c ? normalize(vec2(0.5 * (a - c) + difference, b)) : normalize(vec2(b, 0.5 * (c - a) + difference));
  float reach = sqrt(2.0 * log(255.0 * opacity));
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0;
  at = reach * corner;
  vec2 px = focal * p.xy / p.z + centre + sqrt(large) * at.x * along + sqrt(small) * at.y * vec2(-along.y, along.x);
  gl_Position = vec4(2.0 * px.x / size.x - 1.0, 1.0 - 2.0 * px.y / size.y, 0, 1);
  colour = vec4(shaded(index, normalize(mean - eye)), opacity);
  if (tinted) {
    vec4 tint = texelFetch(palette, ivec2(texel(tints, index).x, 0), 0);
    colour.rgb = mix(colour.rgb, tint.rgb, tint.a);
  }
}`;

const FRAGMENT = `#version 300 es
precision highp float;
in vec4 colour;
in vec2 at;
out vec4 result;
void main() {
  float alpha = min(0.999, colour.a * exp(-0.5 * dot(at, at)));
  if (alpha < 1.0 / 255.0) discard;
  result = vec4(alpha * colour.rgb, alpha);
}`;

const COPY_VERTEX = `#version 300 es
out vec2 uv;
void main() {
  uv = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0;
  gl_Position = vec4(uv * 2.0 - 1.0, 0, 1);
}`;

const COPY_FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D source;
uniform vec4 background;
in vec2 uv;
out vec4 result;
void main() {
  vec4 sum = texture(source, uv);
  float alpha = clamp(sum.a + (1.0 - sum.a) * background.a, 0.0, 1.0);
  result = vec4(sum.rgb + (1.0 - sum.a) * background.a * background.rgb, alpha);
}`;

export class Renderer {
  /** @throws {Error} the browser has no WebGL 2 */
  constructor(canvas) {
    this.canvas = canvas;
    this.gl = canvas.getContext("webgl2", { antialias: false, alpha: false, powerPreference: "high-performance" });
    if (!this.gl) throw new Error("this browser has no WebGL 2");
    this.table = null;
    this.count = 0;
    this._setUp();
  }

  _setUp() {
    const gl = this.gl;
    const floats = gl.getExtension("EXT_color_buffer_float") || gl.getExtension("EXT_color_buffer_half_float");
    gl.getExtension("OES_texture_half_float_linear");
    this._format = floats ? gl.RGBA16F : gl.RGBA8;
    this._copy = link(gl, COPY_VERTEX, COPY_FRAGMENT);
    this._empty = gl.createVertexArray();
    this._targets = new Map();
    this._order = gl.createBuffer();
    this._tint = null;
    gl.disable(gl.DEPTH_TEST);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
  }

  /** Everything again after the browser took the graphics context away. */
  restore() {
    this._setUp();
    if (this.table) this.upload(this.table);
  }

  /** Takes the splats of a `SplatTable`. */
  upload(table) {
    const gl = this.gl;
    this.table = table;
    this.count = 0;
    for (const texture of [this._geometry, this._harmonics]) if (texture) gl.deleteTexture(texture);
    this._geometry = tableTexture(gl, gl.RGBA32UI, gl.RGBA_INTEGER, gl.UNSIGNED_INT, table.geometry, 4);
    this._harmonics = tableTexture(gl, gl.RGBA32UI, gl.RGBA_INTEGER, gl.UNSIGNED_INT, table.harmonics, 4);
    const defines = `#define DEGREE ${table.degree}\n#define TEXELS ${table.texels}\n`;
    this._splats = link(gl, VERTEX.replace("precision highp float;", defines + "precision highp float;"), FRAGMENT);
    this._vertices = gl.createVertexArray();
    gl.bindVertexArray(this._vertices);
    gl.bindBuffer(gl.ARRAY_BUFFER, this._order);
    const place = gl.getAttribLocation(this._splats.program, "index");
    gl.enableVertexAttribArray(place);
    gl.vertexAttribIPointer(place, 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(place, 1);
    gl.bindVertexArray(null);
    this.setTint(null);
  }

  /** Uint32Array of the splats to draw, in drawing order. */
  setOrder(order) {
    const gl = this.gl;
    gl.bindBuffer(gl.ARRAY_BUFFER, this._order);
    gl.bufferData(gl.ARRAY_BUFFER, order, gl.DYNAMIC_DRAW);
    this.count = order.length;
  }

  /**
   * Colours splats over their own colour, for selections and overlays.
   *
   * @param {Uint8Array|null} values row of the palette per splat
   * @param {number[][]} palette up to 256 colours [r, g, b, share], 0..1
   */
  setTint(values, palette = []) {
    const gl = this.gl;
    for (const texture of this._tint ?? []) gl.deleteTexture(texture);
    const rows = new Uint8Array(1024);
    palette.forEach((c, i) => rows.set(c.map((v) => Math.round(255 * v)), 4 * i));
    const colours = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, colours);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, rows);
    nearest(gl);
    const table = tableTexture(gl, gl.R8UI, gl.RED_INTEGER, gl.UNSIGNED_BYTE, values ?? new Uint8Array(1), 1);
    this._tint = [table, colours];
    this._tinted = Boolean(values);
  }

  /**
   * Draws a view on the canvas.
   *
   * @param {number[]} c2w pose, rows first
   * @param {{fx, fy, cx, cy}} K pixels of a picture of `size`
   * @param {number[]} size [width, height] of the picture that is drawn, stretched over the canvas
   * @param {{near: number, background: number[]}} look
   */
  draw(c2w, K, size, { near, background }) {
    const gl = this.gl;
    this._accumulate(c2w, K, size, near);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    this._present(size, [...background, 1]);
  }

  /** (height, width, 4) bytes RGBA of a view, first row on top; the background may have an alpha. */
  pixels(c2w, K, size, { near, background }) {
    const gl = this.gl, [width, height] = size;
    this._accumulate(c2w, K, size, near);
    const target = makeTarget(gl, width, height, gl.RGBA8);
    gl.bindFramebuffer(gl.FRAMEBUFFER, target.frame);
    gl.viewport(0, 0, width, height);
    this._present(size, background.length === 4 ? background : [...background, 1]);
    const flipped = new Uint8Array(4 * width * height), rows = new Uint8ClampedArray(flipped.length);
    gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, flipped);
    for (let y = 0; y < height; y++) rows.set(flipped.subarray(4 * width * (height - 1 - y), 4 * width * (height - y)), 4 * width * y);
    gl.deleteFramebuffer(target.frame);
    gl.deleteTexture(target.texture);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    return rows;
  }

  _accumulate(c2w, K, size, near) {
    const gl = this.gl, target = this._target(...size);
    gl.bindFramebuffer(gl.FRAMEBUFFER, target.frame);
    gl.viewport(0, 0, ...size);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (!this.count) return;
    const { program, at } = this._splats, m = invert(c2w);
    gl.useProgram(program);
    gl.uniformMatrix4fv(at("w2c"), true, m);
    gl.uniform3f(at("eye"), c2w[3], c2w[7], c2w[11]);
    gl.uniform2f(at("focal"), K.fx, K.fy);
    gl.uniform2f(at("centre"), K.cx, K.cy);
    gl.uniform2f(at("size"), ...size);
    gl.uniform1f(at("near"), near);
    gl.uniform1i(at("tinted"), this._tinted ? 1 : 0);
    [["geometry", this._geometry], ["harmonics", this._harmonics], ["tints", this._tint[0]], ["palette", this._tint[1]]].forEach(([name, texture], i) => {
      gl.activeTexture(gl.TEXTURE0 + i);
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.uniform1i(at(name), i);
    });
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.bindVertexArray(this._vertices);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.count);
    gl.bindVertexArray(null);
    gl.disable(gl.BLEND);
  }

  _present(size, background) {
    const gl = this.gl, { program, at } = this._copy;
    gl.useProgram(program);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this._target(...size).texture);
    gl.uniform1i(at("source"), 0);
    gl.uniform4f(at("background"), ...background);
    gl.bindVertexArray(this._empty);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    gl.bindVertexArray(null);
  }

  _target(width, height) {
    const key = `${width} ${height}`;
    if (!this._targets.has(key)) {
      if (this._targets.size >= 4) {
        const [oldest, target] = this._targets.entries().next().value;
        this.gl.deleteFramebuffer(target.frame);
        this.gl.deleteTexture(target.texture);
        this._targets.delete(oldest);
      }
      this._targets.set(key, makeTarget(this.gl, width, height, this._format));
    }
    return this._targets.get(key);
  }
}

function makeTarget(gl, width, height, format) {
  const texture = gl.createTexture(), frame = gl.createFramebuffer();
  gl.activeTexture(gl.TEXTURE0);
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texStorage2D(gl.TEXTURE_2D, 1, format, width, height);
  for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
  for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, side, gl.LINEAR);
  gl.bindFramebuffer(gl.FRAMEBUFFER, frame);
  gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, texture, 0);
  return { texture, frame };
}

/** A table as a texture of full rows. */
function tableTexture(gl, internal, format, type, values, channels) {
  const texture = gl.createTexture(), total = values.length / channels, rows = Math.max(1, Math.ceil(total / WIDTH));
  if (rows > gl.getParameter(gl.MAX_TEXTURE_SIZE)) throw new Error(`${total} table entries are more than this graphics card takes`);
  gl.activeTexture(gl.TEXTURE0);
  gl.bindTexture(gl.TEXTURE_2D, texture);
  gl.texStorage2D(gl.TEXTURE_2D, 1, internal, WIDTH, rows);
  const full = Math.floor(total / WIDTH), left = total - full * WIDTH;
  if (full) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, WIDTH, full, format, type, values, 0);
  if (left) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, full, left, 1, format, type, values, full * WIDTH * channels);
  nearest(gl);
  return texture;
}

function nearest(gl) {
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
  gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
}

/** A program and a function that finds its uniforms. */
function link(gl, vertex, fragment) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
    gl.deleteShader(shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) throw new Error(`shader: ${gl.getProgramInfoLog(program)}`);
  const places = new Map();
  return { program, at: (name) => places.get(name) ?? places.set(name, gl.getUniformLocation(program, name)).get(name) };
}
