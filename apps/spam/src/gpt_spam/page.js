// The page: sends the messages to POST /classify and lists the answers. What people and models wrote is only ever
// set as textContent, so that it is shown and never run.
"use strict";

const byId = (id) => document.getElementById(id);
const form = byId("form");
const messages = byId("messages");
const eachLine = byId("each-line");
const button = byId("classify");
let labels = [];
let isBusy = false;

/** Ask the server; return the parsed answer or throw an Error whose message is for people. */
async function ask(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (byId("token").value) {
    headers.Authorization = `Bearer ${byId("token").value}`;
  }
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The server did not answer; see whether it still runs, or send less at a time.");
  }
  let answer;
  try {
    answer = await response.json();
  } catch {
    throw new Error(`The server answered with status ${response.status}; try again in a moment.`);
  }
  if (response.status === 401) {
    byId("token-row").hidden = false;
    byId("token").focus();
    throw new Error("This server needs its token; enter it above.");
  }
  if (!response.ok) {
    throw new Error(sentence(answer.error.message));
  }
  return answer;
}

/** The server's words, where "texts[2]" is the third message to the person who pasted it. */
function sentence(text) {
  const said = text.replace(/^texts\[(\d+)\]/, (_, index) => `message ${Number(index) + 1}`);
  return `${said.charAt(0).toUpperCase()}${said.slice(1)}.`;
}

async function showModel() {
  const health = await ask("/health");
  labels = health.labels;
  byId("model").textContent = `Model: ${health.model}`;
}

async function classify() {
  if (isBusy) {
    return;
  }
  byId("error").textContent = "";
  const texts = (eachLine.checked ? messages.value.split("\n") : [messages.value]).filter((text) => text.trim());
  if (!texts.length) {
    byId("error").textContent = "There is no message yet; paste one into the field.";
    messages.focus();
    return;
  }
  setBusy(true);
  try {
    if (!labels.length) {
      await showModel();
    }
    const { results } = await ask("/classify", { method: "POST", body: JSON.stringify({ texts }) });
    byId("results").replaceChildren(...results.map((result, index) => resultItem(texts[index], result)));
    byId("status").textContent = summary(results);
  } catch (error) {
    byId("results").replaceChildren();
    byId("status").textContent = "";
    byId("error").textContent = error.message;
  } finally {
    setBusy(false);
  }
}

function setBusy(busy) {
  isBusy = busy;
  form.setAttribute("aria-busy", String(busy));
  button.setAttribute("aria-disabled", String(busy)); // not disabled: that would take the focus away
  button.textContent = busy ? "Classifying…" : "Classify";
  if (busy) {
    byId("status").textContent = "Classifying…";
  }
}

/** "3 messages: 2 ham, 1 spam" */
function summary(results) {
  const counts = labels
    .map((label) => [label, results.filter((result) => result.label === label).length])
    .filter(([, count]) => count)
    .map(([label, count]) => `${count} ${label}`);
  return `${results.length} ${results.length === 1 ? "message" : "messages"}: ${counts.join(", ")}`;
}

function resultItem(text, result) {
  const item = element("li", "result");
  const badge = element("strong", `label ${colour(result.label)}`, result.label);
  const tokens = element("span", "quiet", `${result.n_tokens} ${result.n_tokens === 1 ? "token" : "tokens"}`);
  const head = element("p", "head");
  head.append(badge, tokens);
  const bars = element("dl", "bars");
  for (const [label, probability] of Object.entries(result.probabilities)) {
    bars.append(bar(label, probability));
  }
  item.append(head, element("p", "excerpt", text.trim()), bars);
  if (result.truncated) {
    item.append(element("p", "note", "Longer than the model reads: its end was not looked at."));
  }
  return item;
}

function bar(label, probability) {
  const row = element("div");
  const track = element("dd", "track");
  const fill = element("span", `fill ${colour(label)}`);
  fill.style.width = `${100 * probability}%`;
  track.append(fill);
  track.setAttribute("aria-hidden", "true"); // the figure beside it says the same
  row.append(element("dt", "", label), track, element("dd", "percent", percent(probability)));
  return row;
}

/** One decimal; what is not quite certain never reads as 0 or 100. */
function percent(probability) {
  if (probability > 0.999 && probability < 1) {
    return "> 99.9 %";
  }
  if (probability > 0 && probability < 0.001) {
    return "< 0.1 %";
  }
  return `${(100 * probability).toFixed(1)} %`;
}

/** Colours go by the label's place, for the labels are the model's own. */
const colour = (label) => `colour-${Math.max(labels.indexOf(label), 0) % 4}`;

function element(name, classes = "", text = "") {
  const made = document.createElement(name);
  made.className = classes;
  made.textContent = text;
  return made;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  classify();
});
messages.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    classify();
  }
});
eachLine.addEventListener("change", () => {
  document.querySelector("label[for=messages]").textContent = eachLine.checked ? "Messages, one a line" : "Message";
});
showModel().catch((error) => {
  byId("error").textContent = error.message;
});
