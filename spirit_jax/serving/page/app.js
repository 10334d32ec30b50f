// The page: turns of a conversation, the composer, and the answer as it streams.

import { Microphone, Player, RATE, audioContext, decodePcm, drawUnits, drawWave, encodePcm, encodeWav, joinSamples } from "./sound.js";

const $ = (id) => document.getElementById(id);
const EXAMPLES = [
  { text: "The conductor stopped the steam engine near the tunnel, and then", output: "speech" },
  { text: "The young chef", output: "text" },
  { text: "Once upon a time", output: "any" },
];
const STORED = { turns: "spirit.turns", settings: "spirit.settings", key: "spirit.key", theme: "spirit.theme" };

let model = null; // what /v1/models says of it
let turns = []; // {who: "you" | "model", parts: [part], editing}; a part is {text} or {units, samples, rate}
let parts = []; // those of the prompt that is being written, before its text
let microphone = null;
let running = null; // the AbortController of the answer that streams
let player = null;

const element = (name, properties = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("aria-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
};
const button = (label, onclick, properties = {}) => element("button", { type: "button", textContent: label, onclick, ...properties });

function status(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

function headers() {
  const key = $("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function problem(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the server answered with status ${response.status}`;
  }
}

async function connect() {
  try {
    const response = await fetch("/v1/models", { headers: headers() });
    if (!response.ok) throw new Error(await problem(response));
    const served = (await response.json()).data; // the model, then the model with each of its adapters
    [model] = served;
    $("served").replaceChildren(...served.map(({ id }) => element("option", { value: id, textContent: id })));
    for (const part of [$("served"), document.querySelector("label[for=served]")]) part.hidden = served.length < 2;
  } catch (error) {
    $("model").textContent = "not connected";
    status(error.message, true);
    if (!$("options").open && /API key/.test(error.message)) $("options").open = true;
    return;
  }
  $("model").textContent = `${model.id}, ${model.variant}${model.speaks ? "" : ", speech as units only"}`;
  $("length").max = model.max_new_tokens;
  $("voice").replaceChildren(element("option", { value: "", textContent: "default" }));
  for (const name of model.voices) $("voice").append(element("option", { value: name, textContent: name }));
  for (const id of ["record", "upload"]) {
    $(id).disabled = !model.hears;
    $(id).title = model.hears ? "" : "this checkpoint has no speech tokenizer to hear with";
  }
  restoreSettings();
  status("");
}

// ---- turns ----------------------------------------------------------------------------------------------------------

function seconds(part) {
  return part.samples ? part.samples.length / part.rate : 0;
}

function playable(part) {
  return part.samples?.length > 0;
}

function renderTurns() {
  $("turns").replaceChildren(...turns.map(renderTurn));
  $("welcome").hidden = turns.length > 0;
  store();
}

function renderTurn(turn, index) {
  const who = turn.who === "you" ? "You" : "Model";
  const bar = element("div", { className: "bar" }, element("b", { textContent: who }));
  if (turn.parts.filter(playable).length > 1) {
    bar.append(button("Play all", () => play(turn.parts.filter(playable)), { className: "plain", "aria-label": `Play all of turn ${index + 1}` }));
  }
  if (!running) {
    const name = (label) => ({ className: "plain", "aria-label": `${label}, turn ${index + 1}` });
    bar.append(
      button(turn.editing ? "Save" : "Edit", () => (turn.editing ? save(turn) : edit(turn)), name(turn.editing ? "Save" : "Edit")),
      button("Continue here", () => continueFrom(index), name("Continue from here")),
      button("Delete", () => { turns.splice(index, 1); renderTurns(); $("text").focus(); }, name("Delete")),
    );
  }
  const list = element("div", { className: "parts" }, ...turn.parts.map((part) => renderPart(turn, part)));
  turn.element = element("li", { className: `turn ${turn.who}`, "aria-label": `${who}, turn ${index + 1}` }, bar, list);
  return turn.element;
}

function renderPart(turn, part) {
  if (part.text !== undefined) {
    if (turn.editing) {
      part.field = element("textarea", { value: part.text, rows: Math.min(8, 1 + part.text.length / 60), "aria-label": "Text of this turn" });
      return part.field;
    }
    part.element = element("p", { textContent: part.text });
    return part.element;
  }
  return renderSpeech(turn, part);
}

function renderSpeech(turn, part) {
  const wave = element("canvas", { className: "wave", "aria-hidden": "true" });
  wave.style.color = "var(--wave)";
  const units = element("canvas", { className: "units", "aria-hidden": "true" });
  const cursor = element("div", { className: "cursor", hidden: true });
  const track = element("div", { className: "track", tabIndex: 0, role: "slider", "aria-label": "Position in the speech", "aria-valuemin": "0" }, wave, units, cursor);
  const toggle = button("▶", () => togglePart(part), { "aria-label": "Play" });
  const length = element("span", { className: "quiet" });
  const code = element("code");
  const summary = element("summary", { textContent: "units" });
  const details = element("details", {}, summary, code);
  const about = element("div", { className: "about" }, length, details);
  if (turn.editing) {
    about.append(button("Remove", () => { turn.parts = turn.parts.filter((other) => other !== part); renderTurns(); }, { className: "plain" }));
  }
  Object.assign(part, { wave, unitRows: units, cursor, track, toggle, length, code, details, about: summary });
  track.onclick = (event) => {
    const box = track.getBoundingClientRect();
    if (playable(part)) play([part], ((event.clientX - box.left) / box.width) * seconds(part));
  };
  track.onkeydown = (event) => {
    const move = { ArrowRight: 0.5, ArrowUp: 0.5, ArrowLeft: -0.5, ArrowDown: -0.5, Home: -1e9, End: 1e9 }[event.key];
    if (move !== undefined && playable(part)) {
      const to = Math.max(0, Math.min(seconds(part) - 0.1, (part.position ?? 0) + move));
      play([part], to);
    } else if (event.key === " " || event.key === "Enter") togglePart(part);
    else return;
    event.preventDefault();
  };
  requestAnimationFrame(() => paint(part));
  return element("div", { className: "speech" }, toggle, element("div", { className: "body" }, track, about));
}

/** Draw what a stretch of speech has so far. */
function paint(part) {
  if (!part.track?.isConnected) return;
  part.toggle.disabled = !playable(part);
  part.wave.hidden = !playable(part);
  if (playable(part)) drawWave(part.wave, part.samples);
  part.unitRows.hidden = !part.units;
  if (part.units) drawUnits(part.unitRows, part.units);
  part.code.textContent = part.units ?? "";
  part.about.textContent = [["Hu", "phonetic"], ["Pi", "pitch"], ["St", "style"]]
    .filter(([name]) => part.units?.includes(`[${name}`)).map(([, name]) => name).join(", ") + " units";
  part.details.hidden = !part.units;
  part.length.textContent = playable(part) ? `${seconds(part).toFixed(1)} s` : "units without sound";
  part.track.setAttribute("aria-valuemax", seconds(part).toFixed(1));
  setPosition(part, part.position ?? 0);
}

function setPosition(part, position) {
  part.position = position;
  if (!part.track) return;
  const total = seconds(part);
  part.cursor.hidden = !position || !total;
  part.cursor.style.left = `${(100 * Math.min(position, total)) / (total || 1)}%`;
  part.track.setAttribute("aria-valuenow", position.toFixed(1));
  part.track.setAttribute("aria-valuetext", `${position.toFixed(1)} of ${total.toFixed(1)} seconds`);
}

function setPlaying(part, playing) {
  if (!part.toggle) return;
  part.toggle.textContent = playing ? "■" : "▶";
  part.toggle.setAttribute("aria-label", playing ? "Stop" : "Play");
}

function edit(turn) {
  turn.editing = true;
  renderTurns();
  turn.element.querySelector("textarea")?.focus();
}

function save(turn) {
  for (const part of turn.parts) if (part.field) part.text = part.field.value;
  turn.parts = turn.parts.filter((part) => part.text === undefined || part.text !== "");
  turn.editing = false;
  if (!turn.parts.length) turns = turns.filter((other) => other !== turn);
  renderTurns();
  turn.element?.querySelector("button")?.focus();
}

function continueFrom(index) {
  if (turns[index].editing) save(turns[index]);
  turns = turns.slice(0, index + 1);
  generate();
}

// ---- sound ----------------------------------------------------------------------------------------------------------

function newPlayer() {
  player?.stop();
  let current = null;
  const made = new Player(
    (part, position) => {
      if (part !== current) { if (current) { setPlaying(current, false); setPosition(current, 0); } current = part; setPlaying(part, true); }
      setPosition(part, position);
    },
    () => { if (current) { setPlaying(current, false); setPosition(current, 0); } if (player === made) player = null; },
  );
  made.playing = () => current;
  player = made;
  return made;
}

/** Play stretches of speech one after the other, the first one from a position in seconds. */
function play(stretches, from = 0) {
  const made = newPlayer();
  stretches.forEach((part, index) => {
    const start = index ? 0 : from;
    made.push(resample(part).subarray(Math.floor(start * RATE)), part, start);
  });
  made.finish();
}

function togglePart(part) {
  if (player?.playing() === part) player.stop();
  else if (playable(part)) play([part]);
}

/** Samples at 16 kHz; recordings have the rate of the sound card, and the browser's player takes any. */
function resample(part) {
  if (part.rate === RATE) return part.samples;
  const length = Math.floor((part.samples.length * RATE) / part.rate);
  return Float32Array.from({ length }, (_, i) => part.samples[Math.floor((i * part.rate) / RATE)]);
}

// ---- the prompt -----------------------------------------------------------------------------------------------------

function renderParts() {
  $("parts").replaceChildren(
    ...parts.map((part) => {
      const label = part.text ?? `${part.name ?? "Recording"}, ${seconds(part).toFixed(1)} s`;
      const item = element("li", { className: "part" }, element("span", { textContent: label }));
      if (playable(part)) item.append(button("▶", () => play([part]), { className: "plain", "aria-label": `Play ${label}` }));
      item.append(button("✕", () => { parts = parts.filter((other) => other !== part); renderParts(); }, { className: "plain", "aria-label": `Remove ${label}` }));
      return item;
    }),
  );
}

/** What is typed becomes a part, so that a recording comes after it. */
function takeText() {
  if ($("text").value) parts.push({ text: $("text").value });
  $("text").value = "";
}

async function toggleRecording() {
  if (microphone) {
    const recorded = microphone;
    microphone = null;
    $("record").setAttribute("aria-pressed", "false");
    $("record").textContent = "Record";
    $("level").hidden = true;
    const { samples, rate } = recorded.stop();
    if (samples.length < rate / 10) return status("the recording is too short", true);
    takeText();
    parts.push({ samples, rate, wav: encodeWav(samples, rate) });
    renderParts();
    status(`recorded ${(samples.length / rate).toFixed(1)} seconds`);
    $("send").focus();
    return;
  }
  const started = new Microphone(model?.max_audio_seconds ?? 60, showLevel, toggleRecording);
  try {
    await started.start();
  } catch (error) {
    return status(`no microphone: ${error.message}`, true);
  }
  microphone = started;
  $("record").setAttribute("aria-pressed", "true");
  $("record").textContent = "Stop recording";
  $("level").hidden = false;
  status("recording…");
}

const levels = [];
function showLevel(level) {
  levels.push(level);
  if (levels.length % 8) return;
  const canvas = $("level");
  const draw = canvas.getContext("2d");
  draw.clearRect(0, 0, canvas.width, canvas.height);
  draw.fillStyle = getComputedStyle(canvas).getPropertyValue("color");
  const recent = levels.filter((_, i) => i % 8 === 7).slice(-40);
  recent.forEach((value, i) => {
    const size = Math.min(canvas.height, 1 + value * 4 * canvas.height);
    draw.fillRect(i * 3, (canvas.height - size) / 2, 2, size);
  });
  if (levels.length > 4000) levels.splice(0, 2000);
}

async function uploaded(file) {
  if (!file) return;
  const wav = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.split(",")[1] ?? "");
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
  const part = { name: file.name, wav, samples: new Float32Array(0), rate: RATE };
  try {
    const decoded = await audioContext().decodeAudioData(await file.arrayBuffer());
    part.samples = decoded.getChannelData(0).slice();
    part.rate = decoded.sampleRate;
  } catch { /* the server may know the format all the same */ }
  takeText();
  parts.push(part);
  renderParts();
}

// ---- answers --------------------------------------------------------------------------------------------------------

/** The document so far. Neighboring texts get a space between them where there is none. */
function segments() {
  const result = [];
  let before = "";
  for (const part of turns.flatMap((turn) => turn.parts)) {
    if (part.text !== undefined) {
      const space = before && !/\s$/.test(before) && !/^[\s.,!?;:]/.test(part.text) ? " " : "";
      result.push({ text: space + part.text });
      before = part.text;
    } else {
      result.push(part.units ? { units: part.units } : { audio: part.wav });
      before = "";
    }
  }
  return result;
}

function request() {
  if ($("vary").checked) $("seed").value = Math.floor(Math.random() * 1e6);
  const voice = $("voice").value;
  return {
    ...($("served").value ? { model: $("served").value } : {}),
    segments: segments(),
    output_modality: document.querySelector("input[name=output]:checked").value,
    temperature: Number($("temperature").value),
    top_p: Number($("top-p").value),
    seed: Math.trunc(Number($("seed").value)) || 0,
    max_new_tokens: Math.max(1, Math.min(Number($("length").value) || 200, model?.max_new_tokens ?? 1024)),
    ...(voice ? { voice } : {}),
    stream: true,
  };
}

async function* serverSentEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) if (event.startsWith("data: ")) yield JSON.parse(event.slice(6));
  }
}

async function generate() {
  if (running) return;
  if (!turns.length) return status("type or record something first", true);
  storeSettings();
  const prompted = turns.flatMap((turn) => turn.parts);
  const body = request();
  const abort = new AbortController();
  running = abort;
  const answer = { who: "model", parts: [] };
  turns.push(answer);
  renderTurns();
  $("send").hidden = true;
  $("stop").hidden = false;
  status("the model is reading…");
  const begin = performance.now();
  const live = $("autoplay").checked && body.output_modality !== "text" ? newPlayer() : null;
  let end = null;
  let heard = null;
  try {
    const response = await fetch("/v1/generate", { method: "POST", headers: headers(), body: JSON.stringify(body), signal: abort.signal });
    if (!response.ok) throw new Error(await problem(response));
    for await (const event of serverSentEvents(response)) {
      if (event.type === "start") {
        keepUnits(prompted, event.prompt_units);
        status("the model continues…");
      } else if (event.type === "text") addText(answer, event.text);
      else if (event.type === "speech") {
        const samples = event.audio === null ? new Float32Array(0) : decodePcm(event.audio);
        const part = addSpeech(answer, samples, event.units ?? "");
        if (samples.length) heard ??= performance.now();
        live?.push(samples, part, seconds(part) - samples.length / RATE);
      } else if (event.type === "error") throw new Error(event.error.message);
      else if (event.type === "end") end = event;
    }
    const first = heard === null ? "" : `, sound after ${((heard - begin) / 1000).toFixed(1)} s`;
    const why = { length: "stopped at the longest length", timeout: "stopped at the time limit" }[end?.finish_reason] ?? "done";
    status(end ? `${why}: ${end.usage.completion_tokens} tokens in ${end.seconds} s${first}, seed ${body.seed}` : "the connection ended early", !end);
  } catch (error) {
    live?.stop();
    status(error.name === "AbortError" ? "stopped" : error.message, error.name !== "AbortError");
  }
  live?.finish();
  running = null;
  if (!answer.parts.length) turns = turns.filter((turn) => turn !== answer);
  $("send").hidden = false;
  $("stop").hidden = true;
  renderTurns();
  answer.element?.scrollIntoView({ block: "nearest" });
  if (matchMedia("(pointer: fine)").matches) $("text").focus({ preventScroll: true }); // a phone's keyboard stays away
}

/** Remember the units of recordings, so that they are shown and not sent again. */
function keepUnits(prompted, units) {
  prompted.forEach((part, index) => {
    if (part.text !== undefined || part.units || !units[index]) return;
    part.units = units[index];
    paint(part);
  });
}

function addText(turn, text) {
  const last = turn.parts.at(-1);
  if (last?.text !== undefined) {
    last.text += text;
    last.element.textContent = last.text;
  } else append(turn, { text });
  keepInView(turn);
}

function addSpeech(turn, samples, units) {
  let part = turn.parts.at(-1);
  if (!part || part.text !== undefined) {
    part = { units: "", samples: new Float32Array(0), rate: RATE };
    append(turn, part);
  }
  part.samples = joinSamples([part.samples, samples]);
  part.units += units;
  paint(part);
  keepInView(turn);
  return part;
}

function append(turn, part) {
  turn.parts.push(part);
  turn.element.querySelector(".parts").append(renderPart(turn, part));
}

function keepInView(turn) {
  turn.element.scrollIntoView({ block: "nearest" });
}

// ---- what stays over a reload ---------------------------------------------------------------------------------------

function store() {
  const plain = turns.map(({ who, parts: all }) => ({
    who,
    parts: all.map((part) => (part.text !== undefined ? { text: part.text } : { units: part.units, wav: part.units ? undefined : part.wav, rate: part.rate, pcm: playable(part) ? encodePcm(part.samples) : "" })),
  }));
  try {
    sessionStorage.setItem(STORED.turns, JSON.stringify(plain));
  } catch {
    sessionStorage.removeItem(STORED.turns); // more sound than the browser keeps
  }
}

function restore() {
  try {
    turns = JSON.parse(sessionStorage.getItem(STORED.turns) ?? "[]");
    for (const part of turns.flatMap((turn) => turn.parts)) {
      if (part.text !== undefined) continue;
      part.samples = decodePcm(part.pcm);
      delete part.pcm;
    }
  } catch {
    turns = [];
  }
}

const REMEMBERED = ["voice", "temperature", "top-p", "length", "seed"];
function storeSettings() {
  const values = Object.fromEntries(REMEMBERED.map((id) => [id, $(id).value]));
  for (const id of ["vary", "autoplay"]) values[id] = $(id).checked;
  values.output = document.querySelector("input[name=output]:checked").value;
  localStorage.setItem(STORED.settings, JSON.stringify(values));
  sessionStorage.setItem(STORED.key, $("key").value);
}

function restoreSettings() {
  let values = {};
  try {
    values = JSON.parse(localStorage.getItem(STORED.settings) ?? "{}");
  } catch { /* start from the defaults */ }
  for (const id of REMEMBERED) if (values[id] !== undefined) $(id).value = values[id];
  if ($("voice").selectedIndex < 0) $("voice").value = "";
  for (const id of ["vary", "autoplay"]) if (values[id] !== undefined) $(id).checked = values[id];
  if (values.output) document.querySelector(`input[name=output][value=${values.output}]`)?.click();
  showValues();
}

function showValues() {
  for (const id of ["temperature", "top-p"]) $(`${id}-value`).textContent = Number($(id).value).toFixed(2);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = theme === "dark" ? "Light" : "Dark";
  localStorage.setItem(STORED.theme, theme);
}

// ---- start ----------------------------------------------------------------------------------------------------------

function send() {
  if (running) return;
  if (microphone) return status("stop the recording first", true);
  takeText();
  if (parts.length) turns.push({ who: "you", parts });
  parts = [];
  renderParts();
  generate();
}

$("composer").onsubmit = (event) => { event.preventDefault(); audioContext(); send(); };
$("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); audioContext(); send(); }
};
$("record").onclick = toggleRecording;
$("upload").onclick = () => $("file").click();
$("file").onchange = () => { uploaded($("file").files[0]); $("file").value = ""; };
$("stop").onclick = () => running?.abort();
$("clear").onclick = () => { running?.abort(); player?.stop(); turns = []; parts = []; renderParts(); renderTurns(); status(""); $("text").focus(); };
$("theme").onclick = () => {
  const dark = document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  setTheme(dark === "dark" ? "light" : "dark");
  for (const part of turns.flatMap((turn) => turn.parts)) paint(part);
};
$("key").onchange = () => { storeSettings(); connect(); };
for (const id of ["temperature", "top-p"]) $(id).oninput = showValues;
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (microphone) toggleRecording();
  running?.abort();
  player?.stop();
});
addEventListener("resize", () => { for (const part of turns.flatMap((turn) => turn.parts)) paint(part); });

$("examples").append(
  ...EXAMPLES.map(({ text, output }) =>
    element("li", {}, button(text, () => {
      document.querySelector(`input[name=output][value=${output}]`).click();
      $("text").value = text;
      audioContext();
      send();
    })),
  ),
);
$("key").value = sessionStorage.getItem(STORED.key) ?? "";
if (localStorage.getItem(STORED.theme)) setTheme(localStorage.getItem(STORED.theme));
else if (matchMedia("(prefers-color-scheme: dark)").matches) $("theme").textContent = "Light";
new ResizeObserver(() => { // what scrolls into view stays above the prompt
  document.documentElement.style.scrollPaddingBottom = `${document.querySelector("footer").offsetHeight + 8}px`;
}).observe(document.querySelector("footer"));
restore();
renderTurns();
connect();
