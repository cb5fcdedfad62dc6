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
      {about && session === null && (
        <Start about={about} onFile={(file) => begin(() => api.upload(file, about.part_bytes, show))} onDemo={(name) => begin(() => api.openDemo(name))} />
      )}
      {session && !hasMap && <Progress session={session} onClose={leave} />}
      {about && session && hasMap && <Explore key={session.id} about={about} session={session} theme={theme} onProblem={setProblem} />}
      <KeyDialog />
    </>
  );
}
