/** Draw cells as points with WebGL 2: positions and values stay on the graphics card, panning changes three numbers. */
import { type Camera, type Size, pointSize } from "./camera";

const VERTEX = `#version 300 es
in vec2 place;
in vec2 before;
in float value;
uniform vec2 centre, scale, range;
uniform float size, blend, categories, muted;
flat out vec4 colour;
flat out int kind;
uniform sampler2D colours;
void main() {
  vec2 at = mix(before, place, blend);
  gl_Position = isnan(at.x) ? vec4(2.0, 2.0, 0.0, 1.0) : vec4((at - centre) * scale, 0.0, 1.0);
  gl_PointSize = size;
  float width = float(textureSize(colours, 0).x);
  bool lacking = isnan(value) || muted > 0.5;
  float entry = categories > 0.5 ? value : (value - range.x) / max(range.y - range.x, 1e-12) * (width - 2.0);
  int slot = lacking ? int(width) - 1 : clamp(int(entry + 0.5), 0, int(width) - 2);
  colour = texelFetch(colours, ivec2(slot, 0), 0);
  kind = int(colour.a * 255.0 + 0.5);
  colour.a = lacking ? 0.5 : 0.92;
}`;

const FRAGMENT = `#version 300 es
precision highp float;
flat in vec4 colour;
flat in int kind;
uniform float size;
out vec4 pixel;
void main() {
  vec2 p = gl_PointCoord * 2.0 - 1.0;
  vec2 a = abs(p);
  float edge;
  if (kind == 0) edge = 1.0 - length(p);
  else if (kind == 1) edge = 0.85 - max(a.x, a.y);
  else if (kind == 2) edge = min(0.8 - p.y, (p.y + 1.0 - 1.9 * a.x) * 0.47);
  else if (kind == 3) edge = (1.0 - a.x - a.y) * 0.7;
  else if (kind == 4) edge = min(1.0 - length(p), length(p) - 0.5);
  else edge = 0.3 - min(a.x, a.y);
  float cover = clamp(edge * size * 0.5 + 0.5, 0.0, 1.0) * colour.a;
  if (cover < 0.02) discard;
  pixel = vec4(colour.rgb * cover, cover);
}`;

export interface Look {
  categories: boolean;
  low: number;
  high: number;
}

/** The drawing of one canvas. */
export class PointCloud {
  private readonly program: WebGLProgram;
  private readonly buffers: Record<"place" | "before" | "value" | "shown" | "hidden", WebGLBuffer>;
  private readonly texture: WebGLTexture;
  private readonly uniforms = new Map<string, WebGLUniformLocation | null>();
  private counts = { shown: 0, hidden: 0 };
  private numCells = 0;
  private look: Look = { categories: true, low: 0, high: 1 };

  constructor(private readonly gl: WebGL2RenderingContext) {
    this.program = link(gl);
    gl.useProgram(this.program);
    const made = ["place", "before", "value", "shown", "hidden"].map((name) => [name, gl.createBuffer()]);
    this.buffers = Object.fromEntries(made) as typeof this.buffers;
    for (const [name, width] of [["place", 2], ["before", 2], ["value", 1]] as const) {
      const at = gl.getAttribLocation(this.program, name);
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name]);
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, width, gl.FLOAT, false, 0, 0);
    }
    this.texture = gl.createTexture();
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }

  /** Set the places of all cells, and those from which they move there. */
  setPlaces(places: Float32Array, before: Float32Array): void {
    this.numCells = places.length / 2;
    this.fill("place", places);
    this.fill("before", before);
  }

  /** Set each cell's value; `colours` has RGB and the shape for each slot, the last for cells without a value. */
  setValues(values: Float32Array, look: Look, colours: Uint8Array): void {
    const { gl } = this;
    this.look = look;
    this.fill("value", values);
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, colours.length / 4, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, colours);
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
  }

  /** Set the order in which cells are drawn, the topmost last; hidden ones lie below, without colour. */
  setOrder(shown: Uint32Array, hidden: Uint32Array): void {
    const { gl } = this;
    this.counts = { shown: shown.length, hidden: hidden.length };
    for (const [name, order] of [["shown", shown], ["hidden", hidden]] as const) {
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.buffers[name]);
      gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, order, gl.STATIC_DRAW);
    }
  }

  /** Draw everything; `blend` goes from 0 (the places before) to 1. */
  draw(camera: Camera, size: Size, ratio: number, blend: number): void {
    const { gl } = this;
    gl.viewport(0, 0, size.width * ratio, size.height * ratio);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    const shorter = Math.min(size.width, size.height);
    gl.uniform2f(this.at("centre"), camera.x, camera.y);
    gl.uniform2f(this.at("scale"), (camera.zoom * shorter) / size.width, (camera.zoom * shorter) / size.height);
    gl.uniform2f(this.at("range"), this.look.low, this.look.high);
    gl.uniform1f(this.at("size"), pointSize(camera, this.numCells) * ratio);
    gl.uniform1f(this.at("blend"), blend);
    gl.uniform1f(this.at("categories"), this.look.categories ? 1 : 0);
    for (const name of ["hidden", "shown"] as const) {
      if (!this.counts[name]) continue;
      gl.uniform1f(this.at("muted"), name === "hidden" ? 1 : 0);
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.buffers[name]);
      gl.drawElements(gl.POINTS, this.counts[name], gl.UNSIGNED_INT, 0);
    }
  }

  private fill(name: "place" | "before" | "value", data: Float32Array): void {
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.buffers[name]);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, data, this.gl.STATIC_DRAW);
  }

  private at(name: string): WebGLUniformLocation | null {
    if (!this.uniforms.has(name)) this.uniforms.set(name, this.gl.getUniformLocation(this.program, name));
    return this.uniforms.get(name) ?? null;
  }
}

function link(gl: WebGL2RenderingContext): WebGLProgram {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]] as const) {
    const shader = gl.createShader(kind);
    if (!shader) throw new Error("WebGL 2 has no shaders");
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader) ?? "shader");
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program) ?? "program");
  return program;
}
