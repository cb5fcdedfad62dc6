/** Draw cells as points with WebGL 2: positions and values stay on the graphics card, panning changes three numbers. */
import type { Rgb } from "../palette";
import { type Camera, type Size, pointSize } from "./camera";
import { type Look, type Painter, STRIDES } from "./painter";

const VERTEX = `#version 300 es
in vec2 place;
in vec2 before;
in float value;
uniform vec2 centre, scale, range;
uniform float size, blend, categories, muted, slots;
flat out vec4 colour;
flat out int kind;
uniform sampler2D colours;
void main() {
  vec2 at = mix(before, place, blend);
  gl_Position = isnan(at.x) ? vec4(2.0, 2.0, 0.0, 1.0) : vec4((at - centre) * scale, 0.0, 1.0);
  gl_PointSize = size;
  bool lacking = isnan(value) || muted > 0.5;
  float entry = categories > 0.5 ? value : (value - range.x) / max(range.y - range.x, 1e-12) * (slots - 2.0);
  int slot = lacking ? int(slots) - 1 : clamp(int(entry + 0.5), 0, int(slots) - 2);
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

/** For points so small that nobody sees their shape: half the work of a software renderer. */
const PLAIN_FRAGMENT = `#version 300 es
precision highp float;
flat in vec4 colour;
out vec4 pixel;
void main() { pixel = vec4(colour.rgb, 1.0); }`;
const PLAIN_PIXELS = 3;
const ATTRIBUTES = { place: 2, before: 2, value: 1 } as const;

/** The drawing of one canvas. */
export class PointCloud implements Painter {
  private readonly shaped: Program;
  private readonly plain: Program;
  private readonly buffers: Record<"place" | "before" | "value" | "hidden", WebGLBuffer>;
  private readonly shown: { buffer: WebGLBuffer; count: number }[];
  private readonly texture: WebGLTexture;
  private numHidden = 0;
  private numCells = 0;
  private numSlots = 2;
  private look: Look = { categories: true, low: 0, high: 1 };

  constructor(private readonly gl: WebGL2RenderingContext) {
    this.shaped = new Program(gl, VERTEX, FRAGMENT);
    this.plain = new Program(gl, VERTEX, PLAIN_FRAGMENT);
    const made = ["place", "before", "value", "hidden"].map((name) => [name, gl.createBuffer()]);
    this.buffers = Object.fromEntries(made) as typeof this.buffers;
    this.shown = STRIDES.map(() => ({ buffer: gl.createBuffer(), count: 0 }));
    Object.entries(ATTRIBUTES).forEach(([name, width], at) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers[name as keyof typeof ATTRIBUTES]);
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, width, gl.FLOAT, false, 0, 0);
    });
    this.texture = gl.createTexture();
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
    this.numSlots = colours.length / 4;
    this.fill("value", values);
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, colours.length / 4, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, colours);
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
  }

  /** Set the order in which cells are drawn, the topmost last; hidden ones lie below, without colour. */
  setOrder(shown: Uint32Array, hidden: Uint32Array): void {
    this.numHidden = hidden.length;
    this.fillOrder(this.buffers.hidden, hidden);
    STRIDES.forEach((stride, level) => {
      const order = stride === 1 ? shown : shown.filter((_, place) => place % stride === 0);
      this.shown[level].count = order.length;
      this.fillOrder(this.shown[level].buffer, order);
    });
  }

  /** Draw; `blend` goes from 0 (the places before) to 1. Above level 0 only some of the cells are drawn. */
  draw(camera: Camera, size: Size, ratio: number, blend: number, ground: Rgb, level: number): void {
    const { gl } = this;
    gl.viewport(0, 0, size.width * ratio, size.height * ratio);
    gl.clearColor(ground[0] / 255, ground[1] / 255, ground[2] / 255, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    const shorter = Math.min(size.width, size.height);
    const pixels = pointSize(camera, this.numCells) * ratio;
    const isPlain = pixels <= PLAIN_PIXELS;
    const program = isPlain ? this.plain : this.shaped;
    if (isPlain) gl.disable(gl.BLEND);
    else gl.enable(gl.BLEND);
    program.use({
      centre: [camera.x, camera.y],
      scale: [(camera.zoom * shorter) / size.width, (camera.zoom * shorter) / size.height],
      range: [this.look.low, this.look.high],
      size: [isPlain ? Math.max(Math.round(pixels), 1) : pixels],
      blend: [blend],
      categories: [this.look.categories ? 1 : 0],
      slots: [this.numSlots],
    });
    if (level === 0) this.drawOrder(program, this.buffers.hidden, this.numHidden, true);
    this.drawOrder(program, this.shown[level].buffer, this.shown[level].count, false);
  }

  private drawOrder(program: Program, buffer: WebGLBuffer, count: number, muted: boolean): void {
    const { gl } = this;
    if (!count) return;
    program.use({ muted: [muted ? 1 : 0] });
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, buffer);
    gl.drawElements(gl.POINTS, count, gl.UNSIGNED_INT, 0);
  }

  private fillOrder(buffer: WebGLBuffer, order: Uint32Array): void {
    this.gl.bindBuffer(this.gl.ELEMENT_ARRAY_BUFFER, buffer);
    this.gl.bufferData(this.gl.ELEMENT_ARRAY_BUFFER, order, this.gl.STATIC_DRAW);
  }

  private fill(name: "place" | "before" | "value", data: Float32Array): void {
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, this.buffers[name]);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, data, this.gl.STATIC_DRAW);
  }
}

/** Shaders with their uniforms by name. */
class Program {
  private readonly program: WebGLProgram;
  private readonly places = new Map<string, WebGLUniformLocation | null>();

  constructor(
    private readonly gl: WebGL2RenderingContext,
    vertex: string,
    fragment: string,
  ) {
    this.program = link(gl, vertex, fragment);
  }

  /** Draw with these shaders from now on, with uniforms of one or two numbers. */
  use(uniforms: Record<string, number[]>): void {
    const { gl, program, places } = this;
    gl.useProgram(program);
    for (const [name, values] of Object.entries(uniforms)) {
      if (!places.has(name)) places.set(name, gl.getUniformLocation(program, name));
      if (values.length === 2) gl.uniform2f(places.get(name)!, values[0], values[1]);
      else gl.uniform1f(places.get(name)!, values[0]);
    }
  }
}

function link(gl: WebGL2RenderingContext, vertex: string, fragment: string): WebGLProgram {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]] as const) {
    const shader = gl.createShader(kind);
    if (!shader) throw new Error("WebGL 2 has no shaders");
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader) ?? "shader");
    gl.attachShader(program, shader);
  }
  Object.keys(ATTRIBUTES).forEach((name, at) => gl.bindAttribLocation(program, at, name));
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program) ?? "program");
  return program;
}
