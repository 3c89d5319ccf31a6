// A judge's page: two clips at the same frame, a key for an answer, and the next pair once the answer is kept.

const data = JSON.parse($("data").textContent), key = `votes-${data.plan}`;
const canvases = [$("left"), $("right")];
let answers = data.answers, shownAt = 0, isBusy = false;

const player = players({
  folder: "media", speed: () => Number($("speed").value), lost: () => tell(),
  draw: () => {
    player.screens.forEach((screen, i) => {
      const [context, width, height] = player.fitted(canvases[i], screen.entry);
      player.paint(context, screen, width, height);
    });
    $("zoom").textContent = `${player.state.zoom}×`;
    $("play").textContent = player.state.isPlaying ? "❚❚ pause" : "▶ play";
    if (player.screens.length && !shownAt && player.screens.every(screen => screen.isReady)) {
      shownAt = performance.now();
      canvases.forEach(canvas => { canvas.dataset.frames = player.frames; });
      tell();
    }
  },
});
const isDone = () => answers.length >= data.pairs.length;
const current = () => data.pairs.find(([id]) => !answers.some(([answered]) => answered === id));
const isLost = () => player.screens.some(screen => screen.entry.gap);

const tell = (text = "") => {
  $("message").textContent = text || player.screens.find(screen => screen.entry.gap)?.entry.gap || "";
  $("message").className = $("message").textContent ? "bad" : "";
  $("at").textContent = isDone() ? `${answers.length} of ${data.pairs.length}` : `${answers.length + 1} of ${data.pairs.length}`;
  Object.assign($("progress"), {max: data.pairs.length, value: answers.length});
  $("undo").disabled = !answers.length || isBusy;
  $("save").hidden = !data.exported || !answers.length;
  for (const choice of ["left", "right", "tie"]) $(`choose-${choice}`).disabled = !shownAt || isBusy || isLost();
  $("choose-gap").hidden = !isLost();
  document.body.classList.toggle("done", isDone());
  if (isDone() && !text) {
    $("message").textContent = data.exported ? "All pairs are answered. Save the answers, and send the file back." : "All pairs are answered and kept. Thank you; you can close this page.";
  }
};

const entry = media => data.media[media] || {gap: "this clip is not there"};
const open = () => {
  const pair = current();
  shownAt = 0;
  player.play(false);
  player.look(1, 0.5, 0.5);
  player.state.frame = 0;
  if (!pair) { player.open([]); return tell(); }
  player.open(pair.slice(1).map(entry));
  $("speed").value = player.frames / player.fps < 1 ? "0.125" : "1";
  player.play(true);
  tell();
  const next = data.pairs[data.pairs.indexOf(pair) + 1];
  if (next && !data.exported) {  // be ready for it
    for (const {strip, preview, mp4} of next.slice(1).map(entry)) if (strip || mp4) fetch(`media/${strip || preview || mp4}`).catch(() => {});
  }
};

// An answer is kept by the server, or by the browser where there is none.
const keep = async (pair, choice, milliseconds) => {
  if (data.exported) return localStorage.setItem(key, JSON.stringify(answers));
  const answer = await fetch("vote", {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({pair, choice, ms: milliseconds})});
  if (!answer.ok) throw new Error(await answer.text());
};
const change = async (pair, choice, milliseconds, changed) => {
  const before = answers;
  isBusy = true;
  answers = changed;
  try {
    await keep(pair, choice, milliseconds);
    isBusy = false;
    open();
  } catch (error) {
    answers = before;
    isBusy = false;
    tell(`Not kept (${error.message || error}). Is the program still running? Answer again.`);
  }
};
const choose = choice => {
  const pair = current();
  if (!pair || isBusy || (choice === "gap" ? !isLost() : !shownAt || isLost())) return;
  const milliseconds = shownAt ? Math.round(performance.now() - shownAt) : 0;
  change(pair[0], choice, milliseconds, [...answers, [pair[0], choice, milliseconds]]);
};
const undo = () => { if (answers.length && !isBusy) change(answers.at(-1)[0], "undo", 0, answers.slice(0, -1)); };
const save = async () => {
  const content = {plan: data.plan, judge: data.judge, shown: data.shown, votes: answers};
  const bytes = new TextEncoder().encode(JSON.stringify(Object.values(content)));
  const hash = [...new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))].map(byte => byte.toString(16).padStart(2, "0")).join("");
  const blob = new Blob([JSON.stringify({...content, checksum: hash})], {type: "application/json"});
  const name = data.judge.replace(/[^\p{L}\p{N}_-]+/gu, "_") || "judge";
  const link = make("a", "", {href: URL.createObjectURL(blob), download: `votes-${name}.json`});
  link.click();
};

const actions = {
  ArrowLeft: () => choose("left"), ArrowRight: () => choose("right"), ArrowDown: () => choose("tie"), u: undo,
  r: () => { player.play(false); player.state.frame = 0; player.play(true); }, " ": () => player.play(!player.state.isPlaying),
  ",": () => player.step(-1), ".": () => player.step(1),
  "+": () => player.look(2 * player.state.zoom), "=": () => player.look(2 * player.state.zoom),
  "-": () => player.look(player.state.zoom / 2), 0: () => player.look(1),
};
const buttons = {"choose-left": "ArrowLeft", "choose-right": "ArrowRight", "choose-tie": "ArrowDown", undo: "u", replay: "r", play: " ", out: "-", in: "+"};
for (const [id, action] of Object.entries(buttons)) $(id).onclick = actions[action];
$("choose-gap").onclick = () => choose("gap");
$("save").onclick = save;
$("speed").onchange = () => { if (player.state.isPlaying) { player.play(false); player.play(true); } };
addEventListener("keydown", event => {
  const isTaken = event.target.closest("select") || (event.target.closest("button") && " Enter".includes(event.key));
  if (isTaken || event.repeat || event.ctrlKey || event.metaKey || event.altKey || !actions[event.key]) return;
  actions[event.key]();
  event.preventDefault();
});
addEventListener("resize", () => player.show(player.state.frame));
for (const canvas of canvases) player.drag(canvas);
if (data.exported) {
  try {
    const asked = new Set(data.pairs.map(([id]) => id)), kept = JSON.parse(localStorage.getItem(key) || "[]");
    answers = kept.filter(([id]) => asked.has(id));
  } catch (error) {
    tell("This browser keeps no answers for pages from disk: answer all in one go, and save them.");
  }
}
open();
