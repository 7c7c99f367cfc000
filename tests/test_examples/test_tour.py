"""The notebook runs from its first cell to its last one."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient
from tiny_project import UNFORMATTED

NOTEBOOK = Path(__file__).resolve().parents[2] / 'examples' / 'tour.ipynb'


def test_the_notebook_goes_the_whole_way(tmp_path, monkeypatch):
    monkeypatch.setenv('STEPS', '2')
    monkeypatch.setenv('SCENES', '24')
    monkeypatch.setenv('MPLBACKEND', 'agg')
    startup = tmp_path / 'ipython' / 'profile_default' / 'startup'
    startup.mkdir(parents=True)
    (startup / 'unformatted.py').write_text(UNFORMATTED)
    monkeypatch.setenv('IPYTHONDIR', str(tmp_path / 'ipython'))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get('outputs') for cell in notebook.cells)  # stored without results
    client = NotebookClient(notebook, timeout=1800, resources=dict(metadata=dict(path=tmp_path)))
    client.execute()  # an error of a cell raises
    runs = tmp_path / 'work_dirs' / 'tour'
    masks = {path.stem for path in (runs / 'mean_teacher' / 'predicted' / 'masks').rglob('*.png')}
    assert masks == {path.stem for path in (runs / 'scenes' / 'img' / 'test').iterdir()}
    assert (runs / 'exported' / 'segmentor.pth').is_file()
