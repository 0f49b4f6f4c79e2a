"""`domainbed published`."""

import pytest

from domainbed.cli import main


def printed(capsys, *words):
    with pytest.raises(SystemExit) as exit:
        main(["published", *words])
    assert exit.value.code == 0
    return capsys.readouterr().out


def test_text(capsys):
    text = printed(capsys, "--dataset", "PACS", "--selection", "oracle", "--algorithms", "ERM")
    assert text.splitlines() == [
        "-------- Dataset: PACS, model selection method: oracle, from domainbed-2020",
        "Algorithm  A             C             P             S             Avg",
        "ERM        86.5 +/- 1.0  81.3 +/- 0.6  96.2 +/- 0.3  82.7 +/- 1.1  86.7",
        "",
        "-------- Averages, model selection method: oracle, from domainbed-2020",
        "Algorithm  PACS",
        "ERM        86.7 +/- 0.3",
        "",
        "-------- Averages, model selection method: oracle, from fishr-2022",
        "Algorithm  PACS",
        "ERM        86.7 +/- 0.3",
    ]


def test_markdown_and_csv(capsys):
    asked = ("fishr-2022", "--dataset", "Avg", "--algorithms", "Fishr", "--selection", "oracle")
    assert printed(capsys, *asked, "--format", "markdown").splitlines()[2:] == [
        "| Algorithm | Avg | Mean rank |",
        "|:--|--:|--:|",
        "| Fishr | 70.8 | 3.9 |",
    ]
    assert printed(capsys, *asked, "--format", "csv").splitlines() == [
        "source,selection,table,dataset,algorithm,domain,mean,std_err",
        "fishr-2022,oracle,averages,Avg,Fishr,Avg,70.8,",
        "fishr-2022,oracle,averages,Avg,Fishr,Mean rank,3.9,",
    ]
