// The browser of examples. Everything a model or a user wrote enters the page as text content,
// never as markup.
const PAGE = matchMedia("(max-width: 640px)").matches ? 8 : 20, LONG = 2400;
const byId = (id) => document.getElementById(id);
const element = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};
const data = JSON.parse(byId("data").textContent);
const word = (kind) => (Object.hasOwn(data.words, kind) ? data.words[kind] : kind.replaceAll("_", " "));
const several = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;

// A round's rows: base64 of deflated JSON, unpacked when it is first looked at.
const unpack = async (index) => {
  const packed = byId("rows-" + index);
  const coded = packed.textContent.trim();
  const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(coded) : Uint8Array.from(atob(coded), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const made = JSON.parse(await new Response(stream).text());
  packed.remove();
  return made;
};
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
const example = (round, texts) => ([id, text, source, turns, outcome, margin, answers, comparisons, critiques], order) => {
  const scores = answers.map((each) => each[3]).filter((score) => score !== null);
  const high = scores.length ? Math.max(...scores) : null, low = scores.length ? Math.min(...scores) : null;
  const used = [text, ...turns.map((turn) => turn[1]), ...answers.flatMap((each) => [each[0], ...each[4].map((one) => one[2])]), ...critiques.map((each) => each[1])];
  return { round, texts, id, text, source, turns, outcome, margin, answers, comparisons, critiques, order, high, low, spread: scores.length ? high - low : null, used };
};
const loaded = new Map();
const load = (index) => {
  if (!loaded.has(index)) loaded.set(index, unpack(index).then(({ texts, rows }) => {
    const lower = texts.map((text) => text.toLowerCase());
    return { lower, examples: rows.map(example(data.rounds[index].name, texts)) };
  }));
  return loaded.get(index);
};

// Text with what is searched for marked in it.
const filled = (className, text, words) => {
  const box = element("div", className);
  const lower = text.toLowerCase();
  // Lower case may be longer than the text itself; then nothing is marked.
  if (!words || lower.length !== text.length) { box.textContent = text; return box; }
  let from = 0;
  for (let at = lower.indexOf(words); at >= 0; at = lower.indexOf(words, from)) {
    box.append(text.slice(from, at), element("mark", "", text.slice(at, at + words.length)));
    from = at + words.length;
  }
  box.append(text.slice(from));
  return box;
};
const clamped = (box, long) => {
  if (!long) return [box];
  const button = element("button", "unclamp", "Show all");
  button.type = "button";
  box.classList.add("clamp");
  button.addEventListener("click", () => {
    button.textContent = box.classList.toggle("clamp") ? "Show all" : "Show less";
  });
  return [box, button];
};
const shownText = (className, text, words) => clamped(filled(className, text, words), text.length > LONG);
const block = (...parts) => {
  const box = element("div");
  box.append(...parts);
  return box;
};

const judgementsBox = (each, texts, words) => {
  const details = element("details");
  details.append(element("summary", "", several(each[4].length, "judgement") + ": " + each[4].map(([score, status]) => (score === null ? word(status.toLowerCase()) : score)).join(", ")));
  const fill = () => {
    if (details.childElementCount > 1) return;
    for (const [score, status, text] of each[4]) {
      const row = element("div", "judgement");
      row.append(element("b", "", score === null ? word(status.toLowerCase()) : String(score)), block(...shownText("text", texts[text], words)));
      details.append(row);
    }
  };
  details.addEventListener("toggle", fill);
  if (words && each[4].some((one) => texts[one[2]].toLowerCase().includes(words))) { details.open = true; fill(); }
  return details;
};
const ROLES = { chosen: "chosen", rejected: "rejected", taught: "taught" };
const candidateBox = (each, number, texts, words) => {
  const [text, finish, role, score] = each;
  const box = element("div", "candidate " + (ROLES[role] || ""));
  const meta = element("div", "meta");
  if (role) meta.append(element("span", "role", role), " · ");
  meta.append(`answer ${number} · ` + (score === null ? "no score" : "score " + score.toFixed(2)) + ` · ${several(texts[text].length, "character")}` + (finish === "length" ? " · cut at the longest length" : finish && finish !== "stop" ? " · ended by " + finish : ""));
  box.append(meta, ...shownText("text", texts[text], words));
  if (each[4].length) box.append(judgementsBox(each, texts, words));
  return box;
};
const comparisonsBox = (comparisons) => {
  const details = element("details");
  details.append(element("summary", "", several(comparisons.length, "comparison")));
  for (const [first, second, p, status] of comparisons) {
    const row = element("div", "judgement");
    row.append(element("b", "", p === null ? "–" : p.toFixed(2)), element("div", "", p === null ? `answers ${first + 1} and ${second + 1}: ${word(status.toLowerCase())}` : `that answer ${first + 1} is better than answer ${second + 1}`));
    details.append(row);
  }
  return details;
};
const critiqueBox = ([principle, text], texts, words) => {
  const box = element("div", "turn");
  box.append(element("div", "meta", `critique by principle ${principle + 1}`), ...shownText("text", texts[text], words));
  return box;
};
const place = (made) => "#" + encodeURIComponent(made.round) + "/" + encodeURIComponent(made.id);
const card = (made, words) => {
  const box = element("article", "card example");
  box.tabIndex = -1;
  box.dataset.place = place(made);
  const head = element("header");
  const link = element("a", "", made.round + " / " + made.id);
  link.href = place(made);
  link.title = "a link to this example";
  const badge = element("span", "badge" + (made.outcome === "pair" ? " pair" : ""), made.outcome === "pair" ? "pair" + (made.margin === null ? "" : `, margin ${made.margin.toFixed(2)}`) : "no pair: " + word(made.outcome));
  if (made.outcome === "no_pair" || made.outcome === "not_decided") badge.textContent = word(made.outcome);
  head.append(badge, element("span", "", made.source), link);
  box.append(head);
  for (const [role, text] of made.turns) {
    const turn = element("div", "turn");
    turn.append(element("div", "meta", role), ...shownText("text", made.texts[text], words));
    box.append(turn);
  }
  box.append(...shownText("prompt text", made.texts[made.text], words));
  made.answers.forEach((each, index) => {
    box.append(candidateBox(each, index + 1, made.texts, words));
    if (made.critiques[index]) box.append(critiqueBox(made.critiques[index], made.texts, words));
  });
  for (const left of made.critiques.slice(made.answers.length)) box.append(critiqueBox(left, made.texts, words));
  if (made.comparisons.length) box.append(comparisonsBox(made.comparisons));
  return box;
};

const startBrowser = () => {
  const list = byId("examples"), count = byId("count"), more = byId("more");
  const control = Object.fromEntries(["round", "search", "outcome", "source", "finish", "low", "high", "sort"].map((id) => [id, byId(id)]));
  let pool = [], found = [], shown = 0, turn = 0;

  const options = (select, values, named) => {
    const before = select.value;
    select.replaceChildren(select.options[0], ...[...values].sort().map((value) => new Option(named(value), value)));
    select.value = [...select.options].some((each) => each.value === before) ? before : "";
  };
  const chosenRounds = () => (control.round.value === "" ? data.rounds.map((_, index) => index) : [Number(control.round.value)]);
  const extend = () => {
    list.append(...found.slice(shown, shown + PAGE).map((each) => card(each, control.search.value.trim().toLowerCase())));
    shown = Math.min(shown + PAGE, found.length);
    more.parentElement.hidden = shown >= found.length;
    const left = found.length - shown;
    more.textContent = left > PAGE ? `Show ${PAGE} more of ${left.toLocaleString("en")}` : left === 1 ? "Show the last one" : `Show the last ${left}`;
  };
  const number = (input) => (input.value === "" ? null : Number(input.value));
  const wanted = (hits) => {
    const outcome = control.outcome.value, source = control.source.value, finish = control.finish.value;
    const low = number(control.low), high = number(control.high), ranged = low !== null || high !== null;
    return (each) => (!outcome || (outcome === "none" ? each.outcome !== "pair" : each.outcome === outcome))
      && (!source || each.source === source)
      && (!finish || each.answers.some((one) => one[1] === finish))
      && (!ranged || each.answers.some((one) => one[3] !== null && (low === null || one[3] >= low) && (high === null || one[3] <= high)))
      && (!hits || each.used.some((text) => hits.get(each.texts)[text]));
  };
  const KEYS = { order: null, margin: (each) => each.margin, spread: (each) => each.spread, high: (each) => each.high, low: (each) => (each.low === null ? null : -each.low) };
  const sorted = (rows) => {
    const key = KEYS[control.sort.value];
    if (!key) return rows;
    return rows.slice().sort((a, b) => (key(b) ?? -Infinity) - (key(a) ?? -Infinity) || a.order - b.order);
  };
  const say = (total) => {
    const rounds = chosenRounds().map((index) => data.rounds[index]);
    const kept = rounds.reduce((sum, each) => sum + each.kept, 0), all = rounds.reduce((sum, each) => sum + each.total, 0);
    count.textContent = `${found.length.toLocaleString("en")} of ${several(total, "prompt")}` + (kept < all ? ` (this page holds ${kept.toLocaleString("en")} of the ${all.toLocaleString("en")} of ${rounds.length === 1 ? "this round" : "these rounds"})` : "");
  };
  const show = () => {
    const words = control.search.value.trim().toLowerCase();
    let hits = null;
    if (words) hits = new Map(pool.map(({ lower, examples }) => [examples[0]?.texts, lower.map((text) => text.includes(words))]));
    const all = pool.flatMap((each) => each.examples);
    found = sorted(all.filter(wanted(hits)));
    list.replaceChildren();
    shown = 0;
    extend();
    say(all.length);
  };
  const refresh = async () => {
    const mine = ++turn;
    count.textContent = "Unpacking the rows …";
    const rounds = await Promise.all(chosenRounds().map(load));
    if (mine !== turn) return;
    pool = rounds;
    const all = rounds.flatMap((each) => each.examples);
    options(control.outcome, new Set(all.map((each) => each.outcome).filter((each) => each !== "pair")), (each) => "no pair: " + word(each));
    control.outcome.options[0].after(new Option("made a pair", "pair"), new Option("made no pair", "none"));
    control.outcome.value = control.outcome.dataset.wanted ?? "";
    options(control.source, new Set(all.map((each) => each.source).filter(Boolean)), (each) => each);
    options(control.finish, new Set(all.flatMap((each) => each.answers.map((one) => one[1])).filter(Boolean)), (each) => ({ stop: "ended by itself", length: "cut at the longest length" })[each] || each);
    show();
  };
  const goTo = async () => {
    const [name, id] = location.hash.slice(1).split("/").map((part) => { try { return decodeURIComponent(part); } catch { return part; } });
    const index = data.rounds.findIndex((each) => each.name === name);
    if (index < 0 || id === undefined) return false;
    control.round.value = String(index);
    for (const each of ["search", "source", "finish", "low", "high", "outcome"]) control[each].value = "";
    control.outcome.dataset.wanted = "";
    control.sort.value = "order";
    await refresh();
    const at = found.findIndex((each) => each.id === id);
    if (at < 0) { count.textContent = `${name} / ${id} is not among the rows of this page.`; return true; }
    while (shown <= at) extend();
    const box = list.children[at];
    box.querySelectorAll("details").forEach((each) => { each.open = true; });
    box.focus({ preventScroll: true });
    box.scrollIntoView({ block: "start" });
    return true;
  };
  const step = (by) => {
    const cards = [...list.children], at = cards.indexOf(document.activeElement?.closest(".example"));
    if (at + by >= cards.length && shown < found.length) extend();
    const next = list.children[Math.max(0, at + by)];
    if (next) { next.focus({ preventScroll: true }); next.scrollIntoView({ block: "start" }); }
  };
  data.rounds.forEach((each, index) => control.round.append(new Option("round of " + each.name, index)));
  control.round.value = String(data.rounds.length - 1);
  control.outcome.addEventListener("change", () => { control.outcome.dataset.wanted = control.outcome.value; });
  control.round.addEventListener("change", refresh);
  let waiting = 0;
  control.search.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(show, 120); });
  for (const each of ["outcome", "source", "finish", "low", "high", "sort"]) control[each].addEventListener("input", show);
  byId("clear").addEventListener("click", () => {
    for (const each of ["search", "outcome", "source", "finish", "low", "high"]) control[each].value = "";
    control.outcome.dataset.wanted = "";
    control.sort.value = "order";
    show();
  });
  more.addEventListener("click", () => {
    const first = shown;
    extend();
    list.children[first]?.focus({ preventScroll: true });
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    if (event.key === "/") { event.preventDefault(); control.search.focus(); }
    if (event.key === "j") step(1);
    if (event.key === "k") step(-1);
  });
  window.addEventListener("hashchange", goTo);
  goTo().then((went) => went || refresh());
};
if (byId("examples")) {
  if (typeof DecompressionStream === "undefined") {
    byId("count").textContent = "This browser cannot unpack the examples (it has no DecompressionStream, which browsers have had since 2023). They are also in candidates.jsonl and judgements.jsonl of each round.";
    byId("tools").hidden = true;
  } else {
    // Behind the first paint.
    requestAnimationFrame(() => setTimeout(startBrowser, 0));
  }
}
