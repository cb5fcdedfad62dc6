/** Requests to the service; every error becomes a Problem with the text that the service gives. */
import type { About, CellDetails, Session } from "./types";

const API = "/explorer/api";
const KEY = "cytoray-api-key";

/** An RFC 9457 problem: what went wrong and what helps. */
export class Problem extends Error {
  constructor(
    readonly title: string,
    readonly detail: string,
    readonly code = "",
  ) {
    super(`${title}: ${detail}`);
  }
}

/** Called when the service asks for a key; resolves once the user has given one. */
let askForKey: () => Promise<void> = () => Promise.reject(new Problem("A key is needed", "Reload the page."));
export function onKeyNeeded(ask: () => Promise<void>): void {
  askForKey = ask;
}

export function setKey(key: string): void {
  sessionStorage.setItem(KEY, key);
}

const MOST_WAITS = 30;
const pause = (seconds: number): Promise<void> => new Promise((done) => setTimeout(done, 1000 * seconds));

/** Send a request; while the quota of the key is used up, wait as the service asks, and send it again. */
async function request(path: string, options: RequestInit = {}, waits = 0): Promise<Response> {
  const key = sessionStorage.getItem(KEY);
  const headers = new Headers(options.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let response: Response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Problem("The service cannot be reached", "It may be restarting, or your network is down. Try again in a moment.", "offline");
  }
  if (response.status === 401) {
    await askForKey();
    return request(path, options, waits);
  }
  if (response.status === 429 && waits < MOST_WAITS) {
    await pause(Number(response.headers.get("Retry-After")) || 1);
    return request(path, options, waits + 1);
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function problemOf(response: Response): Promise<Problem> {
  const body = await response.json().catch(() => null);
  if (body?.detail) return new Problem(body.title ?? "The service refused", body.detail, body.code);
  return new Problem("The service failed", `It answered with status ${response.status}. Try again in a moment.`);
}

const json = async <T>(path: string, options?: RequestInit): Promise<T> => (await request(path, options)).json();
const post = <T>(path: string, body: unknown): Promise<T> =>
  json<T>(path, { method: "POST", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });

export const about = (): Promise<About> => json(`${API}/about`);
export const session = (id: string): Promise<Session> => json(`${API}/sessions/${id}`);
export const openDemo = (demo: string): Promise<Session> => post(`${API}/sessions`, { demo });
export const cell = (id: string, row: number): Promise<CellDetails> => json(`${API}/sessions/${id}/cells/${row}`);
export const genes = (id: string): Promise<string[]> => json(`${API}/sessions/${id}/genes`);
export const ask = <T>(task: string, body: unknown): Promise<T> => post(`/v1/${task}`, body);

/** Answer the file again, by the version of the model that serves now. */
export const again = (id: string): Promise<Session> => post(`${API}/sessions/${id}/again`, {});

export async function close(id: string): Promise<void> {
  await request(`${API}/sessions/${id}`, { method: "DELETE" });
}

/** Send a file in parts; `progress` gets the state after each. */
export async function upload(file: File, partBytes: number, progress: (state: Session) => void): Promise<Session> {
  let state = await post<Session>(`${API}/sessions`, { name: file.name, num_bytes: file.size });
  progress(state);
  for (let offset = 0; offset < file.size; offset += partBytes) {
    const part = file.slice(offset, offset + partBytes);
    state = await json<Session>(`${API}/sessions/${state.id}/file?offset=${offset}`, { method: "PUT", body: part });
    progress(state);
  }
  return state;
}

/** The values of a column or layout. */
export async function numbers(id: string, key: string, kind: "category" | "number"): Promise<Float32Array> {
  const buffer = await (await request(`${API}/sessions/${id}/columns/${encodeURIComponent(key)}`)).arrayBuffer();
  return kind === "number" ? new Float32Array(buffer) : Float32Array.from(new Uint16Array(buffer), (code) => (code === 65535 ? NaN : code));
}

export async function expression(id: string, gene: string): Promise<{ gene: string; values: Float32Array }> {
  const response = await request(`${API}/sessions/${id}/genes/${encodeURIComponent(gene)}`);
  return { gene: response.headers.get("X-Gene") ?? gene, values: new Float32Array(await response.arrayBuffer()) };
}

/** Fetch a file of answers, with the key if one is needed, and hand it to the browser. */
export async function download(id: string, name: string, as: string): Promise<void> {
  save(await (await request(`${API}/sessions/${id}/download/${name}`)).blob(), as);
}

export function save(content: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Where cells move if a gene is perturbed: arrows on a layout, and a sentence about them. */
export const shift = (id: string, body: { perturbation: string; layout: string; rows: number[] }): Promise<{ arrows: { from: number; x: number; y: number }[]; text: string }> =>
  post(`${API}/sessions/${id}/shift`, body);
