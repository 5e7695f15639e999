const byId = (id) => document.getElementById(id);
const model = JSON.parse(byId("model").textContent);
byId("model-info").textContent = `Model ${model.name}, version ${model.version}, engine ${model.engine}. Nothing you type is stored.`;

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

async function predict(text) {
  const request = { instances: [text], parameters: { all_scores: true } };
  const response = await fetch(`v1/models/${model.name}:predict`, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(request),
  });
  const content = await response.json();
  if (!response.ok) throw new Error(content.error);
  return content.predictions[0];
}

byId("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const result = byId("result");
  try {
    const { labels, scores, truncated } = await predict(byId("text").value);
    result.textContent = (labels.length ? `Chosen: ${labels.join(", ")}.` : "No emotion reaches its threshold.") +
      (truncated ? " The comment was cut: it is longer than the model's maximum length." : "");
    byId("rows").replaceChildren(...Object.entries(scores).map(([label, score]) => row(label, score, labels.includes(label))));
    byId("table").hidden = false;
  } catch (error) {
    result.textContent = `The request failed: ${error.message}`;
    byId("table").hidden = true;
  }
});
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); byId("form").requestSubmit(); }
});
