/** The page: a start without a session, its progress, and the map; the session's id is in the address. */
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import * as api from "./api";
import { Explore } from "./Explore";
import { Header } from "./Header";
import { KeyDialog } from "./KeyDialog";
import { Progress } from "./Progress";
import { ProblemCard } from "./ProblemCard";
import { Start } from "./Start";
import { useTheme } from "./theme";
import type { About, Session } from "./types";

const POLL_MS = 700;
const LOOK_MS = 60_000; // at the version that serves now
const sessionInAddress = (): string => new URLSearchParams(location.hash.slice(1)).get("session") ?? "";

export function App() {
  const [theme, choice, setChoice] = useTheme();
  const [about, setAbout] = useState<About | null>(null);
  const [session, setSession] = useState<Session | null>(null);
  const [problem, setProblem] = useState<unknown>(null);
  const sending = useRef(false);

  useEffect(() => {
    api.about().then(setAbout, setProblem);
    const id = sessionInAddress();
    if (id) {
      api.session(id).then(setSession, (reason) => {
        history.replaceState(null, "", location.pathname);
        setProblem(reason);
      });
    }
  }, []);

  useEffect(() => {
    const look = (): void => {
      if (!document.hidden) api.about().then(setAbout, () => undefined);
    };
    const timer = setInterval(look, LOOK_MS);
    addEventListener("focus", look);
    return () => {
      clearInterval(timer);
      removeEventListener("focus", look);
    };
  }, []);

  const show = useCallback((state: Session): void => {
    setSession(state);
    history.replaceState(null, "", `#session=${state.id}`);
  }, []);

  useEffect(() => {
    if (!session || sending.current || session.stage === "ready" || session.stage === "failed") return;
    const timer = setTimeout(() => api.session(session.id).then(setSession, setProblem), POLL_MS);
    return () => clearTimeout(timer);
  }, [session]);

  const begin = async (work: () => Promise<Session>): Promise<void> => {
    setProblem(null);
    sending.current = true;
    try {
      const state = await work();
      sending.current = false;
      show(state);
    } catch (reason) {
      setSession(null);
      setProblem(reason);
    } finally {
      sending.current = false;
    }
  };

  const leave = async (): Promise<void> => {
    const id = session?.id;
    history.replaceState(null, "", location.pathname);
    setSession(null);
    setProblem(null);
    if (id) await api.close(id).catch(() => undefined);
  };

  const hasMap = session !== null && session.layouts.length > 0 && session.stage !== "failed";
  return (
    <>
      <Header about={about} session={session} choice={choice} onTheme={setChoice} onClose={leave} />
      {problem !== null && <ProblemCard problem={problem} onClose={() => setProblem(null)} />}
      {about && session?.stage === "ready" && session.model.digest !== about.model.digest && (
        <OtherVersion about={about} session={session} onAgain={() => api.again(session.id).then(setSession, setProblem)} />
      )}
      {about && session === null && (
        <Start about={about} onFile={(file) => begin(() => api.upload(file, about.part_bytes, show))} onDemo={(name) => begin(() => api.openDemo(name))} />
      )}
      {session && !hasMap && <Progress session={session} onClose={leave} />}
      {about && session && hasMap && <Explore key={session.id} about={about} session={session} theme={theme} onProblem={setProblem} />}
      <KeyDialog />
    </>
  );
}

/** The service has another version of the model than the one that answered this file. */
function OtherVersion({ about, session, onAgain }: { about: About; session: Session; onAgain: () => void }) {
  return (
    <div class="notice" role="status">
      <p>
        This map was answered by {session.model.name} version {session.model.version}. The service now has version {about.model.version}, which answers what you ask about
        single cells and genes.
      </p>
      <button type="button" class="primary" onClick={onAgain}>
        Run again
      </button>
    </div>
  );
}
