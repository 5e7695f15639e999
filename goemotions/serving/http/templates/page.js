const byId = (id) => document.getElementById(id);
const model = JSON.parse(byId("model").textContent);
const stored = model.log_share
  ? `Of ${(100 * model.log_share).toLocaleString("en", { maximumSignificantDigits: 2 })}% of the comments, the text is stored; what looks like a name, an address or a number is masked.`
  : "Nothing you type is stored.";
byId("model-info").textContent = `Model ${model.name}, version ${model.version}, engine ${model.engine}. ${stored}`;

function element(tag, text, className) {
  const created = document.createElement(tag);
  if (text) created.textContent = text;
  if (className) created.className = className;
  return created;
}

function row(label, score, isChosen) {
  const threshold = model.thresholds[label];
  const tableRow = element("tr", "", isChosen ? "chosen" : "");
  const head = element("th", label);
  head.scope = "row";
  const track = element("span", "", "track");
  const fill = element("span", "", "fill");
  fill.style.width = `${100 * score}%`;
  track.append(fill);
  if (threshold <= 1) {
    const mark = element("span", "", "mark");
    mark.style.left = `${100 * threshold}%`;
    track.append(mark);
  }
  track.setAttribute("aria-hidden", "true");
  const bar = element("td");
  const comparison = threshold > 1 ? "never chosen" : `${isChosen ? "over" : "under"} its threshold of ${threshold.toFixed(2)}`;
  bar.append(track, element("span", comparison, "hidden"));
  tableRow.append(head, bar, element("td", score.toFixed(2)));
  return tableRow;
}

// Contributions below half a point are not shown.
const LEAST = 0.005;
const points = (contribution) => (Math.abs(contribution) < LEAST ? 0 : Math.round(100 * contribution));
// More than by default: the page is for one comment at a time.
const REMOVALS = 31;

function word({ text }, contribution, largest) {
  const shown = element("span", text, "word");
  const value = points(contribution);
  if (value) {
    shown.classList.add(contribution > 0 ? "for" : "against");
    shown.style.setProperty("--share", `${(40 * Math.abs(contribution)) / largest}%`);
    shown.append(element("small", `${value > 0 ? "+" : "\u2212"}${Math.abs(value)}`));
  } else {
    shown.append(element("small", "\u00a0"));
  }
  return shown;
}

function because(characters, words, [label, contributions]) {
  const largest = Math.max(LEAST, ...contributions.map(Math.abs));
  if (!contributions.some((one) => points(one))) return [element("h3", label), element("p", "No single word changes it by a point.", "soft")];
  const line = element("p", "", "words");
  let end = 0;
  words.forEach((one, position) => {
    line.append(characters.slice(end, one.start).join(""), word(one, contributions[position], largest));
    end = one.end;
  });
  line.append(characters.slice(end).join(""));
  return [element("h3", label), line];
}

async function request(verb, text, parameters) {
  const response = await fetch(`v1/models/${model.name}:${verb}`, {
    method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ instances: [text], parameters }),
  });
  const content = await response.json();
  if (!response.ok) throw new Error(content.error);
  return content;
}

async function explain(text) {
  const { words, contributions } = (await request("explain", text, { removals: REMOVALS })).explanations[0];
  // A slow explanation of an earlier comment is not shown beside a later one.
  if (byId("text").value !== text) return;
  // The server counts characters; JavaScript counts those beyond U+FFFF twice.
  const characters = Array.from(text);
  byId("labels").replaceChildren(...Object.entries(contributions).flatMap((one) => because(characters, words, one)));
  byId("explanation").hidden = false;
}

byId("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const result = byId("result");
  const text = byId("text").value;
  try {
    byId("explanation").hidden = true;
    const { labels, scores, truncated } = (await request("predict", text, { all_scores: true })).predictions[0];
    result.textContent = (labels.length ? `Chosen: ${labels.join(", ")}.` : "No emotion reaches its threshold.") +
      (truncated ? " The comment was cut: it is longer than the model's maximum length." : "");
    byId("rows").replaceChildren(...Object.entries(scores).map(([label, score]) => row(label, score, labels.includes(label))));
    byId("table").hidden = false;
    if (labels.length) await explain(text);
  } catch (error) {
    result.textContent = `The request failed: ${error.message}`;
    byId("table").hidden = byId("explanation").hidden = true;
  }
});
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); byId("form").requestSubmit(); }
});
