import html
import subprocess

from hbench.reporting.report import collect, write_pages


def test_the_page_opens_in_a_browser(results, tmp_path, chromium):
    report = collect(results)
    write_pages([report], tmp_path)
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", str(tmp_path / "report.html")]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert report.experiment.title in dom
    assert dom.count("<img") == sum(len(section.pictures) for section in report.sections)
    assert all(html.escape(row.artifact) in dom for row in report.rows)
    assert (tmp_path / "report.html").stat().st_size < 5_000_000
