// Shows what /events tells: five minutes at once, then a pulse each second. Names and messages come from
// configurations and clients, so whatever is shown is set as text; the policy of the page forbids the rest.

const NEWS_MAX = 200;
// A pulse is due each second. The banner has to be there 3 s after the last one.
const SILENCE_MS = 2800;
const RETRY_MS = 1000;

const main = element("main");

/** What is known; `latest` is the pulse that is shown. */
const seen = { pulses: [], newest: null, latest: null, news: [], reasons: new Map(), states: new Map() };
let paused = false;

// --- charts

const sum = (list, of) => list.reduce((total, it) => total + (of(it) || 0), 0);
const rate = (number, pulse = seen.latest) => ((number || 0) * 1000) / (pulse.period_ms || 1000);
const listened = (of) => (pulse) => of.map((it) => rate(sum(pulse.listeners, it), pulse));
const quantiles = (key) => (pulse) => ["p50_us", "p90_us", "p99_us"].map((which) => {
  const wanted = element("scope").value;
  const found = pulse.upstreams.filter((it) => wanted === "" || it.name === wanted);
  const times = found.map((it) => it[key]?.[which] ?? null).filter((it) => it !== null);
  return times.length ? Math.max(...times) : null;
});
const busy = (pulse) => {
  const shares = pulse.workers.map((it) => it.busy);
  return shares.length ? [sum(shares, (it) => it) / shares.length, Math.max(...shares)] : [null, null];
};
/** What the slowest see stands out. */
const percentiles = { series: ["p50", "p90", "p99"], inks: ["s2", "s1", "s0"], format: time, log: true };
const charts = [
  new Chart({
    title: "Sessions per second", series: ["accepted", "ended"], format: count,
    values: listened([(it) => it.accepted, (it) => it.ended]),
  }),
  new Chart({
    title: "Bytes per second", series: ["received", "sent"], format: bytes, base: 1024,
    values: listened([(it) => it.bytes_received, (it) => it.bytes_sent]),
  }),
  new Chart({
    title: "Refused per second", series: [""], format: count, inks: ["alarm"],
    values: listened([(it) => it.refused]),
  }),
  new Chart({ title: "First byte", ...percentiles, values: quantiles("first_byte") }),
  new Chart({ title: "Duration", ...percentiles, values: quantiles("duration") }),
  new Chart({ title: "Workers busy", series: ["average", "busiest"], format: percent, top: 1, values: busy }),
];

const drawCharts = () => {
  const until = seen.latest.at_unix_ms;
  const pulses = seen.pulses.filter((it) => it.at_unix_ms <= until);
  for (const chart of charts) chart.draw(pulses);
};

// --- tables

const words = (title, value, more = {}) => ({
  title, value, show: (row) => (value(row) ? [part(value(row))] : []), ...more,
});
const number = (title, value, format = count, hot = false) => {
  const kind = (it) => (it > 0 ? (hot ? "hot" : "") : "zero");
  return { title, value, number: true, show: (row) => [part(format(value(row)), kind(value(row)))] };
};
const quantile = (title, of, short) => ({
  title, short, number: true, value: (row) => of(row) ?? -1,
  show: (row) => [of(row) == null ? part("–", "zero") : part(time(of(row)))],
});

/** How bad a state of a backend is, and how it looks; one that only another version knows is shown as a warning. */
const STATES = {
  down: [5, "bad"], ejected: [4, "bad"], open: [4, "bad"], "half-open": [3, "warn"], disabled: [1, "off"], up: [0, "good"],
};
const badness = (backend) => STATES[backend.state]?.[0] ?? 2;
const stateParts = (state, kind, why) => [part(state, `state ${kind}`), ...(why ? [part(why, `why ${kind}`)] : [])];

const ended = (listener) => {
  const all = [...(seen.reasons.get(listener.name) ?? [])].filter(([, times]) => times > 0);
  all.sort((a, b) => b[1] - a[1]);
  const shown = all.slice(0, 4).map(([reason, times]) => `${reason} ${count(times)}`);
  return shown.join(", ") + (all.length > 4 ? ", …" : "");
};
const listeners = new Table(element("listeners"), "Listeners", [
  { ...words("Listener", (it) => it.name), head: true },
  {
    title: "State", value: (it) => it.state, plain: true,
    show: (it) => stateParts(it.state, it.state === "accepting" ? "good" : "off"),
  },
  words("Address", (it) => it.address ?? "", { fixed: true }),
  number("Sessions", (it) => it.sessions, whole),
  number("Accepted/s", (it) => rate(it.accepted)),
  number("Refused/s", (it) => rate(it.refused), count, true),
  number("Received/s", (it) => rate(it.bytes_received), bytes),
  number("Sent/s", (it) => rate(it.bytes_sent), bytes),
  {
    title: "Datagrams/s", number: true, value: (it) => rate(it.datagrams_received),
    show: (it) => [
      part(count(rate(it.datagrams_received)), it.datagrams_received > 0 ? "" : "zero"),
      ...(it.datagrams_dropped > 0 ? [part(` ${count(rate(it.datagrams_dropped))} dropped`, "hot")] : []),
    ],
  },
  quantile("Duration p50", (it) => it.duration?.p50_us),
  quantile("Duration p99", (it) => it.duration?.p99_us, "p99"),
  words("Endings in 5 min", ended, { wide: true }),
]);

const good = (upstream) => upstream.backends.filter((it) => it.state === "up").length;
const upstreams = new Table(element("upstreams"), "Upstreams", [
  {
    title: "Upstream", value: (it) => it.name, head: true,
    show: (it) => [part(it.name, "", () => choose(it.name))],
  },
  {
    title: "Backends up", value: (it) => it.backends.length - good(it), number: true,
    show: (it) => [part(`${whole(good(it))} of ${whole(it.backends.length)}`, good(it) < it.backends.length ? "hot" : "")],
  },
  number("Sessions", (it) => sum(it.backends, (backend) => backend.sessions), whole),
  number("Requests/s", (it) => rate(it.requests)),
  number("Retries/s", (it) => rate(it.retries), count, true),
  {
    title: "Queued", number: true, value: (it) => it.queued ?? -1,
    show: (it) => [part(it.queued == null ? "–" : whole(it.queued), it.queued > 0 ? "hot" : "zero")],
  },
  quantile("Connect p50", (it) => it.connect?.p50_us),
  quantile("Connect p99", (it) => it.connect?.p99_us, "p99"),
  quantile("First byte p50", (it) => it.first_byte?.p50_us),
  quantile("First byte p99", (it) => it.first_byte?.p99_us, "p99"),
  quantile("Duration p50", (it) => it.duration?.p50_us),
  quantile("Duration p99", (it) => it.duration?.p99_us, "p99"),
]);

const backends = new Table(element("backends"), "Backends", [
  {
    title: "Backend", head: true, value: (it) => it.name,
    show: (it) => [part(it.name), ...(it.address === it.name ? [] : [part(it.address, "address")])],
  },
  words("Upstream", (it) => it.upstream),
  {
    title: "State", wide: true, plain: true, worst: true,
    value: (it) => badness(it) + (it.failed > 0 ? 0.5 : 0),
    show: (it) => stateParts(it.state, STATES[it.state]?.[1] ?? "warn", it.why),
  },
  {
    title: "Breaker", value: (it) => it.breaker ?? "",
    show: (it) => [part(it.breaker ?? "", it.breaker === "closed" ? "zero" : "hot")],
  },
  number("Weight", (it) => it.weight, whole),
  number("Sessions", (it) => it.sessions, whole),
  number("Connections/s", (it) => rate(it.connections)),
  number("Failed/s", (it) => rate(it.failed), count, true),
  number("Received/s", (it) => rate(it.bytes_received), bytes),
  number("Sent/s", (it) => rate(it.bytes_sent), bytes),
  quantile("First byte p50", (it) => it.first_byte?.p50_us),
  quantile("First byte p99", (it) => it.first_byte?.p99_us, "p99"),
], { index: 2, down: true });

/** Shows the backends of an upstream. */
const choose = (upstream) => {
  element("filter").value = `${upstream}/`;
  showBackends();
  element("filter").focus();
};

const showBackends = () => {
  const all = seen.latest.upstreams.flatMap((upstream) =>
    upstream.backends.map((backend) => ({ ...backend, upstream: upstream.name })));
  const wanted = element("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (it) => `${it.upstream}/${it.name} ${it.address} ${it.state} ${it.why ?? ""}`.toLowerCase();
  const found = wanted.length ? all.filter((it) => wanted.every((word) => text(it).includes(word))) : all;
  const shown = backends.fill(found);
  const up = all.filter((it) => it.state === "up").length;
  const notes = [`${whole(up)} of ${whole(all.length)} up`];
  if (wanted.length) notes.push(`${whole(found.length)} found`);
  if (shown < found.length) {
    const first = backends.sorted?.index === 2 && backends.sorted.down ? "the worst" : "the first";
    notes.push(`${first} ${whole(shown)} are shown, ${whole(found.length - shown)} are not: filter to see them`);
  }
  write(element("backends-note"), notes.join("; "));
};

const showTable = (table, rows, note) => {
  const left = rows.length - table.fill(rows);
  write(element(note), left > 0 ? `${whole(rows.length)}, of which ${whole(left)} are not shown` : whole(rows.length));
};

// --- header and news

const fact = (name) => {
  const group = make("div");
  const value = make("dd");
  group.append(make("dt", "", name), value);
  element("facts").append(group);
  return value;
};
const facts = { generation: fact("generation"), uptime: fact("up"), sessions: fact("sessions"), busy: fact("busy") };
facts.busyText = make("span");
facts.cores = make("span", "cores");
facts.cores.setAttribute("aria-hidden", "true");
facts.busy.append(facts.busyText, facts.cores);

const showHeader = (pulse) => {
  write(facts.generation, String(pulse.generation));
  write(facts.uptime, age(pulse.uptime_ms));
  write(facts.sessions, `${whole(pulse.sessions)} of ${whole(pulse.max_connections)}`);
  write(facts.busyText, `${percent(busy(pulse)[0] ?? 0)} of ${many(pulse.workers.length, "worker")}`);
  const bars = pulse.workers.slice(0, 64).map((worker) => {
    const bar = make("i");
    bar.style.setProperty("--busy", `${Math.round(worker.busy * 100)}%`);
    return bar;
  });
  facts.cores.replaceChildren(...bars);
};
const showState = (text, kind) => {
  write(element("state"), text);
  element("state").className = `pill ${kind}`;
};
const showProcess = ({ state }) => showState(state, { serving: "good", delaying: "warn", draining: "warn" }[state] ?? "");

const LEVELS = { error: "bad", warn: "warn", info: "dim" };
const chosen = {
  all: () => true,
  grave: (line) => ["warn", "error"].includes(line.level.toLowerCase()),
  reloads: (line) => /^(reload|upgrade)/i.test(line.message),
};
/** Not each second: somebody may be about to copy a line. */
const showNews = () => {
  const which = document.querySelector("input[name=news]:checked").value;
  const found = seen.news.filter(chosen[which]).reverse();
  const lines = found.map((line) => {
    const item = make("li");
    const moment = make("time", "", clock(line.at_unix_ms));
    moment.dateTime = new Date(line.at_unix_ms).toISOString();
    const level = line.level.toLowerCase();
    item.append(moment, make("span", LEVELS[level] ?? "dim", level), make("span", "", line.message));
    return item;
  });
  element("news").replaceChildren(...(lines.length ? lines : [make("li", "empty", "no such lines")]));
  write(element("news-note"), `the newest first; ${many(found.length, "line")}`);
};

/** Who was asked for most in what is kept. */
const busiest = (names) => {
  const requests = (name) => sum(seen.pulses, (pulse) => pulse.upstreams.find((it) => it.name === name)?.requests);
  return names.map((name) => [name, requests(name)]).reduce((best, it) => (it[1] > best[1] ? it : best), ["", -1])[0];
};

/** Upstreams to choose from, where there is a choice. */
const showScopes = (pulse) => {
  const scope = element("scope");
  const names = pulse.upstreams.map((it) => it.name);
  const wanted = ["", ...names];
  const known = [...scope.options].map((it) => it.value);
  element("scope-label").hidden = names.length < 2;
  if (wanted.length === known.length && wanted.every((name, index) => name === known[index])) return;
  const before = known.length > 0 ? scope.value : busiest(names);
  scope.replaceChildren(...wanted.map((name) => new Option(name || "the slowest upstream", name)));
  scope.value = wanted.includes(before) ? before : "";
};

/** Tells who can't see it what has become of backends: changes only, a few at most. */
const tellChanges = (pulse) => {
  const states = new Map(pulse.upstreams.flatMap((upstream) =>
    upstream.backends.map((it) => [`${upstream.name}/${it.name}`, it])));
  const changed = [...states].filter(([name, it]) => seen.states.has(name) && seen.states.get(name) !== it.state);
  seen.states = new Map([...states].map(([name, it]) => [name, it.state]));
  if (changed.length === 0) return;
  const told = changed.slice(0, 3).map(([name, it]) => `${name} is ${it.state}${it.why ? `: ${it.why}` : ""}`);
  if (changed.length > 3) told.push(`and ${changed.length - 3} more have changed`);
  write(element("told"), told.join("; "));
};

const show = () => {
  const pulse = seen.newest;
  if (paused || !pulse || document.hidden) return;
  seen.latest = pulse;
  showHeader(pulse);
  showScopes(pulse);
  drawCharts();
  showTable(listeners, pulse.listeners, "listeners-note");
  showTable(upstreams, pulse.upstreams, "upstreams-note");
  showBackends();
};

const reveal = (known) => {
  main.hidden = !known;
  element("facts").hidden = !known;
  element("pause").disabled = !known;
};

/** Shows what is known before the first pulse has come: all but the backends. */
const glance = (pulse) => {
  seen.latest = { ...pulse, upstreams: pulse.upstreams.map((it) => ({ ...it, backends: [] })) };
  reveal(true);
  showProcess(pulse);
  showHeader(pulse);
  showScopes(pulse);
  drawCharts();
  showTable(listeners, pulse.listeners, "listeners-note");
};

// --- what comes

const tally = (pulse, sign) => {
  for (const listener of pulse.listeners) {
    const reasons = seen.reasons.get(listener.name) ?? new Map();
    seen.reasons.set(listener.name, reasons);
    for (const [reason, times] of Object.entries(listener.reasons ?? {})) {
      reasons.set(reason, (reasons.get(reason) ?? 0) + sign * times);
    }
  }
};
const forget = () => {
  seen.pulses = [];
  seen.reasons.clear();
};
const keep = (pulse) => {
  const last = seen.pulses.at(-1)?.at_unix_ms ?? 0;
  if (pulse.at_unix_ms === last) return;
  // The machine's clock was set back: nothing fits any more.
  if (pulse.at_unix_ms < last) forget();
  // Of thousands of backends only the last word is kept.
  seen.pulses.push({ ...pulse, upstreams: pulse.upstreams.map(({ backends: _, ...rest }) => rest) });
  tally(pulse, 1);
  while (pulse.at_unix_ms - seen.pulses[0].at_unix_ms > WINDOW_MS) tally(seen.pulses.shift(), -1);
};

let newsAreOld = false;
const receive = {
  history({ pulses }) {
    forget();
    pulses.forEach(keep);
    newsAreOld = true;
    if (!seen.latest && pulses.length > 0) glance(pulses.at(-1));
  },
  news({ lines }) {
    seen.news = [...(newsAreOld ? [] : seen.news), ...lines].slice(-NEWS_MAX);
    newsAreOld = false;
    if (!paused) showNews();
  },
  pulse(pulse) {
    seen.newest = pulse;
    keep(pulse);
    tellChanges(pulse);
    reveal(true);
    showProcess(pulse);
    show();
  },
};

// --- the connection

/** When something was heard last, for a stopwatch and for people; how this attempt can be given up, and since when. */
const line = { heard: performance.now(), since: Date.now(), begun: 0, attempt: null, refusal: "", waiting: false };
const heard = () => {
  Object.assign(line, { heard: performance.now(), since: Date.now(), refusal: "" });
  showSilence();
};

const showSilence = () => {
  const silent = !line.waiting && (line.refusal !== "" || performance.now() - line.heard > SILENCE_MS);
  const banner = element("banner");
  if (silent) {
    const what = line.refusal || `the proxy has not answered since ${clock(line.since)}`;
    write(banner, `${what}; trying again`);
    showState("no answer", "bad");
  }
  banner.hidden = !silent;
  main.classList.toggle("stale", silent);
  element("facts").classList.toggle("stale", silent);
  document.title = silent ? "ringress: no answer" : "ringress";
};

setInterval(() => {
  showSilence();
  const quiet = performance.now() - Math.max(line.heard, line.begun);
  if (quiet > SILENCE_MS) line.attempt?.abort();
}, 100);

const sleep = (ms) => new Promise((wake) => setTimeout(wake, ms));

/** Reads events until the stream ends. Ends early where it is given up. */
const listen = async () => {
  const token = sessionStorage.getItem("token");
  Object.assign(line, { begun: performance.now(), attempt: new AbortController() });
  // Not EventSource: it can't show a token.
  const headers = token === null ? {} : { Authorization: `Bearer ${token}` };
  const answer = await fetch("events", { headers, signal: line.attempt.signal, cache: "no-store" });
  if (answer.status === 401) return askForToken(await answer.text(), token !== null);
  if (!answer.ok) {
    line.refusal = (await answer.text()).trim();
    return null;
  }
  element("links").hidden = token !== null;
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return null;
    // Over a slow line the first event takes longer than one may be silent.
    heard();
    const from = Math.max(0, text.length - 1);
    text += value;
    for (let end = text.indexOf("\n\n", from); end >= 0; end = text.indexOf("\n\n")) {
      take(text.slice(0, end));
      text = text.slice(end + 2);
    }
  }
};

const take = (event) => {
  const fields = event.split("\n").map((it) => it.split(/: ?(.*)/s));
  const of = (name) => fields.filter(([key]) => key === name).map(([, value]) => value).join("\n");
  const what = receive[of("event")];
  if (!what) return;
  try {
    what(JSON.parse(of("data")));
  } catch (error) {
    // What can't be shown this time may be the next.
    console.error(error);
  }
};

/** Asks until somebody has an answer. */
const askForToken = (why, wasWrong) => new Promise((go) => {
  line.waiting = true;
  showSilence();
  showState("locked", "warn");
  reveal(false);
  element("door").hidden = false;
  write(element("door-says"), wasWrong ? why.trim() : "");
  element("token").value = "";
  element("token").focus();
  element("door").onsubmit = (event) => {
    event.preventDefault();
    sessionStorage.setItem("token", element("token").value.trim());
    element("door").hidden = true;
    line.waiting = false;
    heard();
    go("again");
  };
});

const look = async () => {
  for (;;) {
    let next = null;
    try {
      next = await listen();
    } catch {
      // A line that broke or was given up is what the banner is for.
      line.refusal = "";
    }
    if (next !== "again") await sleep(RETRY_MS);
  }
};

// --- what is pressed

element("pause").addEventListener("click", () => {
  paused = !paused;
  element("pause").setAttribute("aria-pressed", String(paused));
  const now = seen.latest.at_unix_ms;
  write(element("recent"), paused ? `Five minutes until ${clock(now)}, paused` : "Last five minutes");
  show();
  if (!paused) showNews();
});
element("filter").addEventListener("input", showBackends);
element("scope").addEventListener("change", drawCharts);
for (const choice of document.querySelectorAll("input[name=news]")) choice.addEventListener("change", showNews);
document.addEventListener("visibilitychange", show);

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
const showTheme = () => element("theme").setAttribute("aria-pressed", String(isDark()));
element("theme").addEventListener("click", () => {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  localStorage.setItem("theme", theme);
  showTheme();
});
prefersDark.addEventListener("change", showTheme);
if (localStorage.getItem("theme")) document.documentElement.dataset.theme = localStorage.getItem("theme");
showTheme();

element("charts").append(...charts.map((chart) => chart.figure));
look();
