"""A hook of MkDocs: the leaderboard of what is released and submitted, as a page of the site."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from domainbed.config.baselines import PREFIX, summaries
from domainbed.reporting.page import to_html
from domainbed.sweeps.leaderboard import leaderboard

SUBMISSIONS = Path(__file__).parents[1] / "results" / "submissions"
BOARD = "board/index.html"
PAGE = """# Leaderboard

{what}
[Share a result](submit.md) says how to read it, how to rebuild it, and how a method gets on it.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the leaderboard, if there is something to rank, and the page that leads to it."""
    exports = [PREFIX + name for name in summaries()] + sorted(
        map(str, SUBMISSIONS.glob("*/*.parquet"))
    )
    what = "No baseline is released yet: the leaderboard will be here."
    if exports:
        html = to_html(leaderboard(exports)).replace(f"{SUBMISSIONS}/", "results/submissions/")
        files.append(File.generated(config, BOARD, content=html))
        what = f"[All methods, ranked]({BOARD}), from {len(exports)} exports of every run."
    files.append(File.generated(config, "leaderboard.md", content=PAGE.format(what=what)))
    return files
