// Asks the process every other second, shows what it says, and says clearly when it says nothing.

const EVERY_MS = 2000;
const PATIENCE_MS = 5000; // for an answer; a process that is stopped accepts connections all the same
const FEW = matchMedia("(max-width: 640px)").matches ? 25 : 100;

const state = { page: null, before: null, limit: FEW, paused: false, lostSince: null, heardAt: null, timer: 0, asking: false };

function live(look, text) {
  dress(byId("live"), look);
  say(byId("live"), text);
}

function notices(list) {
  const key = JSON.stringify(list);
  if (state.notices === key) return; // else a screen reader would read them every other second
  state.notices = key;
  byId("notices").replaceChildren(...list.map(([look, text]) => make("p", { class: `notice ${look}` }, text)));
}

function show(status) {
  const role = status.role === "relay" ? "relay" : "agent";
  if (!state.page || state.role !== role) {
    const more = () => { state.limit = MANY; ask(); };
    const limit = () => state.limit;
    state.page = role === "relay" ? new RelayPage(more, limit) : new AgentPage(more, limit);
    state.role = role;
    state.before = null;
    byId("content").replaceChildren(state.page.node);
  }
  const restarted = state.before && status.uptime_s < state.before.uptime_s;
  if (restarted) state.before = null;
  state.page.show(status, new Rates(state.before, status), state.before);
  state.before = status;
  say(byId("role"), role);
  say(byId("about"), state.page.about(status));
  say(byId("version"), `relayd ${status.version}, up ${duration(status.uptime_s)}`);
  document.title = `relayd ${role} on ${location.host}`;
  const problems = state.page.notices ? state.page.notices(status) : [];
  if (status.draining) problems.push(["warn", "This relay is draining: its agents are asked to go to another one."]);
  notices(problems);
}

function heard(status) {
  state.lostSince = null;
  state.heardAt = new Date();
  document.body.classList.remove("stale");
  show(status);
  live("on", "Live");
}

function lost(why) {
  state.lostSince = state.lostSince || new Date();
  document.body.classList.add("stale");
  document.title = "No answer - relayd";
  live("lost", "No answer");
  const since = state.heardAt ? `The figures below are from ${state.heardAt.toLocaleTimeString()}. ` : "";
  notices([["bad", `The process doesn't answer (${why}). ${since}Asking again every ${EVERY_MS / 1000} seconds.`]]);
}

async function ask() {
  if (state.asking) return;
  state.asking = true;
  clearTimeout(state.timer);
  const given = new AbortController();
  const patience = setTimeout(() => given.abort(), PATIENCE_MS);
  let status = null;
  try {
    const answer = await fetch(`/status?peers=${state.limit}`, { signal: given.signal, cache: "no-store" });
    if (!answer.ok) throw new Error(`it says ${answer.status}`);
    status = await answer.json();
  } catch (error) {
    lost(given.signal.aborted ? `nothing within ${PATIENCE_MS / 1000} seconds`
      : error instanceof TypeError ? "it can't be reached" : error.message);
  }
  clearTimeout(patience);
  state.asking = false;
  if (status) heard(status);
  if (!state.paused && !document.hidden) state.timer = setTimeout(ask, EVERY_MS);
}

byId("pause").addEventListener("click", () => {
  state.paused = !state.paused;
  byId("pause").setAttribute("aria-pressed", String(state.paused));
  clearTimeout(state.timer);
  if (state.paused) live("paused", "Paused");
  else ask();
});

// A tab that nobody sees asks for nothing.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !state.paused) ask();
});

ask();
