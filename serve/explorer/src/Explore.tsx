/** The map with its legend on one side and details on the other. */
import { useCallback, useEffect, useMemo, useRef, useState } from "preact/hooks";
import * as api from "./api";
import { CellPanel } from "./CellPanel";
import { Check } from "./Check";
import { type Colouring, type Filter, colouringOf, colouringOfGene, columnTitle, drawingOrder, groupTitle, shownBy } from "./colouring";
import { Combobox } from "./Combobox";
import { Downloads } from "./Downloads";
import { figurePng, figureSvg } from "./figure";
import { GenePanel } from "./GenePanel";
import { Legend } from "./Legend";
import type { Theme } from "./palette";
import { type Camera, HOME } from "./scatter/camera";
import { type Arrow, Scatter } from "./scatter/Scatter";
import { Tabs } from "./Tabs";
import type { About, Column, Session } from "./types";

interface Props {
  about: About;
  session: Session;
  theme: Theme;
  onProblem: (problem: unknown) => void;
}

const LAYOUTS: Record<string, string> = { umap: "UMAP", pca: "Principal components", reference: "Reference map" };
const first = (columns: Column[]): Column | undefined => columns.find((one) => one.name === "label") ?? columns.find((one) => one.kind === "category") ?? columns[0];

export function Explore({ about, session, theme, onProblem }: Props) {
  const { id, columns, num_cells } = session;
  const [layout, setLayout] = useState("");
  const [places, setPlaces] = useState<Float32Array | null>(null);
  const [colouring, setColouring] = useState<Colouring | null>(null);
  const [filters, setFilters] = useState<Record<string, Filter>>({});
  const [selected, setSelected] = useState(-1);
  const [gene, setGene] = useState("");
  const [names, setNames] = useState<string[]>([]);
  const [tab, setTab] = useState("check");
  const [withLabels, setWithLabels] = useState(true);
  const [spoken, setSpoken] = useState("");
  const [arrows, setArrows] = useState<Arrow[]>([]);
  const camera = useRef<Camera>(HOME);
  const cache = useRef(new Map<string, Promise<Colouring>>());
  const wanted = useRef("");
  const chosen = session.layouts.includes(layout) ? layout : session.layouts[0];

  useEffect(() => {
    api.genes(id).then(setNames, onProblem);
    colourBy(first(columns)?.key ?? "");
  }, [id]);
  useEffect(() => {
    setArrows([]);
    api.numbers(id, `layout.${chosen}`, "number").then(setPlaces, onProblem);
  }, [id, chosen]);

  const load = (key: string, work: () => Promise<Colouring>): Promise<Colouring> => {
    const cached = cache.current.get(key) ?? work();
    cache.current.set(key, cached);
    cached.catch(() => cache.current.delete(key));
    return cached;
  };
  const show = async (key: string, work: () => Promise<Colouring>): Promise<void> => {
    wanted.current = key;
    try {
      const found = await load(key, work);
      if (wanted.current !== key) return;
      setColouring(found);
      setSpoken(`Coloured by ${found.title}`);
    } catch (reason) {
      onProblem(reason);
    }
  };
  const colourBy = (key: string): void => {
    const column = columns.find((one) => one.key === key);
    if (column) void show(key, async () => colouringOf(column, await api.numbers(id, key, column.kind)));
  };
  const colourByGene = (name: string): void => {
    setGene(name);
    void show(`gene:${name}`, async () => {
      const found = await api.expression(id, name);
      return colouringOfGene(found.gene, found.values);
    });
  };
  const openGene = (name: string): void => {
    setGene(name);
    setTab("gene");
  };
  const setFilter = (filter: Filter | undefined, key: string): void =>
    setFilters(({ [key]: _, ...others }) => (filter ? { ...others, [key]: filter } : others));
  const select = useCallback((row: number): void => {
    setSelected(row);
    if (row >= 0) setTab("cell");
    else setSpoken("No cell is selected");
  }, []);

  const shown = useMemo(() => shownBy(Object.values(filters), num_cells), [filters, num_cells]);
  const numShown = useMemo(() => shown.reduce((sum, one) => sum + one, 0), [shown]);
  const groups = useMemo(() => Map.groupBy(columns, groupTitle), [columns]);
  const figure = async (kind: "svg" | "png"): Promise<void> => {
    if (!places || !colouring) return;
    const { name, version } = session.model;
    const drawing = {
      places, colouring, shown, camera: camera.current, order: drawingOrder(colouring, shown).shown,
      axes: chosen === "pca" ? "PC" : "UMAP",
      caption: `${session.name}: ${numShown.toLocaleString("en")} cells. Model ${name}, version ${version}; cytoray ${about.cytoray}.`,
    };
    api.save(kind === "svg" ? figureSvg(drawing) : await figurePng(drawing), `${stem(session.name)}.${kind}`);
  };
  const shift = async (perturbed: string): Promise<string> => {
    const found = await api.shift(id, { perturbation: perturbed, layout: chosen, rows: sample(shown, 60) });
    setArrows(found.arrows);
    return found.text;
  };

  const isGene = colouring?.key.startsWith("gene:");
  return (
    <main class="explore">
      <h1 class="unseen">{session.name}</h1>
      <aside class="side" aria-label="Colour and filter">
        <label class="field">
          Colour by
          <select value={isGene ? "" : colouring?.key} onChange={(event) => colourBy(event.currentTarget.value)}>
            {isGene && <option value="">{colouring!.title} (gene)</option>}
            {[...groups].map(([title, list]) => (
              <optgroup key={title} label={title}>
                {list.map((column) => (
                  <option key={column.key} value={column.key}>
                    {columnTitle(column)}
                  </option>
                ))}
              </optgroup>
            ))}
          </select>
        </label>
        <Combobox label="or by a gene" placeholder="CD3D, MS4A1, ENSG…" names={names} value={isGene ? colouring!.title : ""} onChoose={colourByGene} />
        {colouring && <Legend colouring={colouring} filter={filters[colouring.key]} theme={theme} onFilter={(filter) => setFilter(filter, colouring.key)} />}
        <FilterChips filters={filters} current={colouring?.key} onRemove={(key) => setFilter(undefined, key)} />
      </aside>
      <section class="centre" aria-label="Map">
        <div class="strip">
          <span class="number">
            <b>{numShown.toLocaleString("en")}</b>
            {numShown < num_cells && ` of ${num_cells.toLocaleString("en")}`} cells
          </span>
          {session.layouts.length > 1 && (
            <label>
              <span class="unseen">Layout</span>
              <select value={chosen} onChange={(event) => setLayout(event.currentTarget.value)}>
                {session.layouts.map((name) => (
                  <option key={name} value={name}>
                    {LAYOUTS[name] ?? name}
                  </option>
                ))}
              </select>
            </label>
          )}
          <label class="check-box">
            <input type="checkbox" checked={withLabels} onChange={(event) => setWithLabels(event.currentTarget.checked)} /> Names
          </label>
          {arrows.length > 0 && (
            <button type="button" class="quiet" onClick={() => setArrows([])}>
              Remove arrows
            </button>
          )}
          {session.stage === "layout" && <span class="faint waiting">Principal components for now; UMAP is on its way …</span>}
          <span class="space" />
          <Downloads session={session} onFigure={figure} onProblem={onProblem} />
        </div>
        {places && colouring ? (
          <Scatter places={places} colouring={colouring} shown={shown} theme={theme} selected={selected} withLabels={withLabels} arrows={arrows} onSelect={select} onCamera={(now) => (camera.current = now)} />
        ) : (
          <p class="map faint waiting">Loading the map …</p>
        )}
      </section>
      <aside class="side details" aria-label="Details">
        <Tabs
          value={tab}
          onChange={setTab}
          tabs={[
            { key: "cell", title: "Cell", content: <CellPanel session={id} row={selected} onGene={colourByGene} onSummary={setSpoken} /> },
            { key: "gene", title: "Gene", content: <GenePanel tasks={about.tasks} names={names} gene={gene} onGene={openGene} onColour={colourByGene} onShift={about.tasks.includes("perturb") ? shift : null} /> },
            { key: "check", title: "Data check", content: <Check session={session} /> },
          ]}
        />
      </aside>
      <p class="unseen" role="status" aria-live="polite">
        {spoken}
      </p>
    </main>
  );
}

const stem = (name: string): string => name.split(".")[0] || "cells";

/** Up to `count` of the shown cells, spread over all of them. */
function sample(shown: Uint8Array, count: number): number[] {
  const rows = Array.from(shown.keys()).filter((row) => shown[row]);
  return Array.from({ length: Math.min(count, rows.length) }, (_, place) => rows[Math.floor((place * rows.length) / Math.min(count, rows.length))]);
}

function FilterChips({ filters, current, onRemove }: { filters: Record<string, Filter>; current?: string; onRemove: (key: string) => void }) {
  const others = Object.entries(filters).filter(([key]) => key !== current);
  if (!others.length) return null;
  return (
    <div class="chips" role="group" aria-label="Filters">
      <span class="faint">Also filtered by</span>
      {others.map(([key, { colouring }]) => (
        <button type="button" class="chip" key={key} aria-label={`Remove the filter ${colouring.title}`} onClick={() => onRemove(key)}>
          {colouring.title} ✕
        </button>
      ))}
    </div>
  );
}
