import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from annotation_study import Study, truth
from peftbench.annotation.collect import import_annotations
from peftbench.errors import UserError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


STEPS = """
<pre id="outcome"></pre>
<script>
(() => {
  const out = {};
  const texts = [];  // of what is offered for saving; a blob's own text() would come after the page is looked at
  window.Blob = class { constructor(parts) { texts.push(parts.join("")); } };
  URL.createObjectURL = () => "#";
  const press = (key, target = document.body) =>
    target.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const type = (id, text) => { $(id).value = text; $(id).dispatchEvent(new Event("input")); };
  try {
    press("1");
    out.flagged = document.querySelectorAll("li.flagged").length;
    press("1");
    out.unflagged = document.querySelectorAll("li.flagged").length;
    $("json").click();
    out.unnamed = $("status").textContent;
    type("name", "Zoë O'Neil");
    for (let i = 0; i < items.length; i++) {
      for (const answer of items[i].answers) {
        if (answer.text.includes(" and ")) press(answer.key);
        if (answer.text.includes(" and ")) type("note-" + answer.key, 'not, "there"');
      }
      press("x", $("note-1"));
      if (i % 2) press("Enter"); else $("judged").click();
      if (i === 1) { $("json").click(); out.partial = texts.pop(); }
    }
    out.progress = $("progress").value;
    out.status = $("status").textContent;
    press("ArrowLeft");
    out.where = $("where").textContent;
    $("json").click();
    out.json = texts.pop();
    $("csv").click();
    out.csv = texts.pop();
    out.kept = localStorage.getItem(STORE) !== null;
    load(out.partial);
    out.resumed = $("status").textContent;
    out.place = $("where").textContent;
    load(out.json.replace(sheet, "0123456789abcdef"));
    out.foreign = $("status").textContent;
    load("[]");
    out.nonsense = $("status").textContent;
    out.still = count();
    load(out.json);
    out.loaded = count();
    $("json").click();
    out.roundtrip = texts.pop() === out.json;
  } catch (error) { out.error = String(error.stack || error); }
  $("outcome").textContent = JSON.stringify(out);
})();
</script>
</body>
"""


def chromium(folder: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    done = subprocess.run(
        [CHROMIUM, *options, *arguments], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_person_at_the_sheet(study: Study) -> None:
    sheet = study.sheet()
    page = study.folder / "sheet/sheet.html"
    driven = study.folder / "driven.html"
    driven.write_text(page.read_text(encoding="utf-8").replace("</body>", STEPS), encoding="utf-8")
    dom = chromium(study.folder, "--dump-dom", driven.as_uri())
    outcome = re.search(r'<pre id="outcome">(.*?)</pre>', dom, re.DOTALL)
    assert outcome
    out = json.loads(html.unescape(outcome[1]))
    assert "error" not in out, out["error"]
    assert (out["flagged"], out["unflagged"]) == (1, 0)
    assert "give your name first" in out["unnamed"]
    assert out["progress"] == 6
    assert "6 of 6 judged, kept in this browser. All done" in out["status"]
    assert out["kept"]
    assert out["where"].startswith("Item 5 of 6")
    assert out["resumed"] == "Loaded: 2 of 6 judged."
    assert out["place"].startswith("Item 3 of 6")
    assert "belongs to another sheet" in out["foreign"]
    assert "was not written by such a sheet" in out["nonsense"]
    assert (out["still"], out["loaded"], out["roundtrip"]) == (2, 6, True)
    (study.folder / "z.json").write_text(out["json"], encoding="utf-8")
    (study.folder / "z.csv").write_text(out["csv"], encoding="utf-8")
    (study.folder / "p.json").write_text(out["partial"], encoding="utf-8")
    by_json = import_annotations([study.folder / "z.json"], study.folder / "sheet")
    assert by_json == import_annotations([study.folder / "z.csv"], study.folder / "sheet")
    assert by_json.people[0].annotator == "Zoë O'Neil"
    assert by_json.people[0].flags == truth(sheet)
    assert set(by_json.people[0].notes.values()) == {'not, "there"'}
    with pytest.raises(UserError, match="4 of 6 items are not judged"):
        import_annotations([study.folder / "p.json"], study.folder / "sheet")


RESUME = """
<script>
if (!localStorage.getItem(STORE)) {
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "1" }));
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
  $("name").value = "Ann";
  $("name").dispatchEvent(new Event("input"));
  location.reload();
}
</script>
</body>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_sheet_that_was_closed_goes_on_where_it_was(study: Study) -> None:
    study.sheet()
    page = (study.folder / "sheet/sheet.html").read_text(encoding="utf-8")
    driven = study.folder / "driven.html"
    report_state = "<script>document.title = `${state.name} ${state.at} ${count()}`;</script>"
    driven.write_text(page.replace("</body>", RESUME + report_state), encoding="utf-8")
    dom = chromium(study.folder, "--virtual-time-budget=4000", "--dump-dom", driven.as_uri())
    assert "<title>Ann 1 1</title>" in dom
    assert "1 of 6 judged, kept in this browser." in dom


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_what_the_sheet_looks_like(study: Study) -> None:
    study.sheet()
    shot = study.folder / "sheet.png"
    page = (study.folder / "sheet/sheet.html").as_uri()
    chromium(study.folder, "--window-size=1200,800", f"--screenshot={shot}", page)
    with Image.open(shot) as picture:
        assert picture.size == (1200, 800)
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 100, "not a blank page"
