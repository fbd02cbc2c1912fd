// Saved talks: the server's list of them, if it keeps any (`sg2 serve --sessions`).
//
//   SavedTalks   the server's API: list, find, delete
//   TalkList     the panel: each talk with a button to go on with it, and one to delete it

export const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

const IN_USE = 409, ATTEMPTS = 20, INTERVAL = 250; // a talk that was just closed may still be in use for a moment

export class SavedTalks {
  constructor(getKey) { this.getKey = getKey; }

  async list() { return (await (await this.fetch("")).json()).data; }

  async exists(id) { return (await this.fetch(`/${id}`, {}, [404])).ok; }

  async delete(id) {
    for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
      const answer = await this.fetch(`/${id}`, { method: "DELETE" }, [IN_USE, 404]);
      if (answer.status !== IN_USE) return;
      await new Promise((resolve) => setTimeout(resolve, INTERVAL));
    }
    throw new Error("the talk is open elsewhere: close it there first");
  }

  // Returns the answer. Throws what the server says, unless its status is one of `expected`.
  async fetch(path, options = {}, expected = []) {
    const key = this.getKey(), headers = key ? { Authorization: `Bearer ${key}` } : {};
    const answer = await fetch(`v1/sessions${path}`, { headers, ...options });
    if (answer.ok || expected.includes(answer.status)) return answer;
    const { error } = await answer.json().catch(() => ({}));
    throw Object.assign(new Error(error?.message ?? "the server does not list its talks"), { status: answer.status });
  }
}

export class TalkList {
  constructor(root, talks, { onBegin, onResume, onDelete }) { Object.assign(this, { root, talks, onBegin, onResume, onDelete }); }

  // Shows the talks anew. `current`: the id of the open one.
  async show({ model, needs_key, keep_days }, current) {
    const found = await this.talks.list(), list = document.createElement("ul");
    list.append(...found.map((talk) => this.row(talk, model, current)));
    const top = Object.assign(document.createElement("div"), { className: "row" });
    top.append(element("p", explanation(needs_key, keep_days)), this.button("New talk", this.onBegin));
    this.root.replaceChildren(top, found.length ? list : element("p", "There are none yet."));
  }

  row(talk, model, current) {
    const row = document.createElement("li"), words = document.createElement("div");
    row.dataset.talk = talk.id;
    const facts = [moment(talk.updated_at), talk.id === current ? "open" : counted(talk.turns, "turn")];
    if (talk.model !== model) facts.push(`with ${talk.model}`);
    words.append(element("strong", talk.title ?? "(no words)"), element("small", facts.join(" · ")));
    row.append(words);
    if (talk.id !== current && talk.model === model) row.append(this.button("Go on", () => this.onResume(talk.id)));
    row.append(this.deletion(talk.id));
    return row;
  }

  // The first press asks, the second deletes.
  deletion(id) {
    const button = this.button("Delete", () => {
      if (button.classList.contains("danger")) return this.onDelete(id);
      button.classList.add("danger");
      button.textContent = "Really?";
    });
    button.onblur = () => {
      button.classList.remove("danger");
      button.textContent = "Delete";
    };
    return button;
  }

  button(text, onclick) { return Object.assign(element("button", text), { type: "button", className: "quiet", onclick }); }
}

function explanation(needsKey, keepDays) {
  const until = keepDays ? `until ${counted(keepDays, "day")} after their last turn` : "until you delete them";
  const readers = needsKey ? "Everyone who has this API key" : "Everyone who can reach it";
  return `This server keeps talks ${until}. ${readers} can read and continue them.`;
}

// A time in seconds; the year is shown if it is another one.
function moment(seconds) {
  const time = new Date(seconds * 1000), shown = { month: "short", day: "numeric", hour: "numeric", minute: "2-digit" };
  if (time.getFullYear() !== new Date().getFullYear()) shown.year = "numeric";
  return time.toLocaleString([], shown);
}

const element = (tag, textContent) => Object.assign(document.createElement(tag), { textContent });
