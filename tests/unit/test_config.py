import pytest

from hbench.errors import HBenchError
from hbench.experiments import experiments_folder, load_experiment, override

TABLES = {  # Tables 3 and 4 of the paper
    "mnist32": ("MNIST32-400-20-32-5", 64, (1, 2, 2, 4), (), 1, 0.0, 128, 3000),
    "anime64": ("Anime64-400-40-128-2", 64, (1, 2, 4, 8), (16,), 4, 0.0, 128, 12000),
    "celebahq128": ("CelebAHQ128-500-40-256-2", 128, (1, 1, 2, 3, 4), (16,), 4, 0.1, 64, 15000),
    "afhq128": ("AFHQ128-400-40-256-2", 128, (1, 1, 2, 3, 4), (16,), 4, 0.1, 64, 15000),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_papers_settings(name):
    e = load_experiment(name)
    m, d = e.model, e.discovery
    row = (e.title, m.model_channels, m.channel_mult, m.attention_resolutions, m.num_heads, m.dropout, d.batch_size)
    assert (*row, d.steps) == TABLES[name]
    assert (m.num_res_blocks, d.lr, d.lambda_reg, d.lambda_adv) == (2, 1e-3, 0.1, 0.1)
    assert d.reconstructor == ("lenet" if name in ("mnist32", "anime64") else "resnet18")


def test_every_experiment_loads_and_says_its_name():
    names = [path.stem for path in experiments_folder().glob("*.toml")]
    assert {"mnist16", "digits16", *TABLES} <= set(names)
    assert all(load_experiment(name).title for name in names)


def test_overrides():
    e = load_experiment("mnist16", ["discovery.K=8", "discovery.spacing=linspace", "model.channel_mult=[1, 2]"])
    assert (e.discovery.K, e.discovery.spacing, e.model.channel_mult) == (8, "linspace", (1, 2))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("discovery.k=3", 'unknown key "discovery.k": did you mean "K"?'),
        ("discovery.lamda_adv=3", 'did you mean "lambda_adv"?'),
        ("discovry.K=3", 'unknown key "discovry": did you mean "discovery"?'),
        ("discovery.K=1", "discovery.K = 1: input should be greater than or equal to 2"),
        ("discovery.S=-1", "discovery.S = -1: input should be greater than 0"),
        ("discovery.keep_size=true", "make discovery.start positive"),
        ("discovery.S=0.1", "min_magnitude must not exceed discovery.S"),
        ("discovery.K=many", "discovery.K = 'many'"),
        ("discovery.M=1001", "must not exceed diffusion.T = 1000"),
        ("discovery.t_shift=1000", "must be below diffusion.T"),
        ("model.num_heads=3", "64 channels cannot be split"),
        ("data.size=8", "too small for the LeNet"),
        ("discovery.batch_size=1", "greater than or equal to 2"),
        ("model.model_channels=40", "not a multiple of 32"),
        ("model.attention_resolutions=[5]", "no feature map is 5 pixels wide"),
        ("data.size=18", "cannot be halved"),
        ("discovery.nodes=disk", "discovery.nodes = 'disk': input should be 'device' or 'cpu'"),
        ("K=3", 'write "section.key=value"'),
        ("name.x=3", "name is not a section"),
    ],
)
def test_mistakes_are_one_line_that_names_the_fix(override, message):
    with pytest.raises(HBenchError) as error:
        load_experiment("mnist16", [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_that_exclude_each_other():
    with pytest.raises(HBenchError, match="use one of both"):
        load_experiment("mnist16", ["discovery.compile=true", "discovery.strategy=offload"])
    for strategy in ("vanilla", "offload", "torch-checkpoint"):
        with pytest.raises(HBenchError, match=r'discovery\.nodes = "cpu" goes with .* "node" or "auto"'):
            load_experiment("mnist16", ["discovery.nodes=cpu", f"discovery.strategy={strategy}"])
    for strategy in ("auto", "node"):
        load_experiment("mnist16", ["discovery.nodes=cpu", f"discovery.strategy={strategy}"])


def test_unknown_experiment_lists_the_known():
    with pytest.raises(HBenchError, match="choose one of afhq128, anime64"):
        load_experiment("mnist64")


def test_broken_toml_names_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[data\n")
    (tmp_path / "latin.toml").write_bytes('label = "Köpfe"'.encode("latin-1"))
    with pytest.raises(HBenchError, match=r"latin\.toml: not UTF-8: save it as UTF-8"):
        load_experiment(tmp_path / "latin.toml")
    with pytest.raises(HBenchError, match=r"mine\.toml: not valid TOML"):
        load_experiment(str(path))


def test_the_root_of_the_data_starts_at_the_file_and_is_kept_nowhere(tmp_path, monkeypatch):
    text = (experiments_folder() / "afhq128.toml").read_text()
    (tmp_path / "my.toml").write_text(text.replace("[data]", '[data]\nroot = "pictures"'))
    monkeypatch.chdir(experiments_folder())
    experiment = load_experiment(tmp_path / "my.toml")
    assert experiment.data.root == str(tmp_path / "pictures")
    assert "root" not in experiment.model_dump()["data"]
    assert override(experiment, "discovery.K=7").data.root == experiment.data.root
    monkeypatch.chdir(tmp_path)
    assert load_experiment("my.toml", ["data.root=elsewhere"]).data.root == "elsewhere"  # of the current folder
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.toml").write_text(text.replace("[data]", '[data]\nroot = "~/dogs"'))
    assert load_experiment("my.toml").data.root == str(tmp_path / "dogs")
    (tmp_path / "my.toml").write_text(text.replace("[data]", '[data]\nroot = "~nobody-here/dogs"'))
    with pytest.raises(HBenchError, match=r'~nobody-here/dogs: there is no home folder for its "~": write the whole'):
        load_experiment("my.toml")


@pytest.mark.parametrize("key", ["data.background=red", "data.background=#12345", "data.root=''", "data.flip=2"])
def test_settings_of_the_data_out_of_range(key):
    with pytest.raises(HBenchError, match=f"{key.partition('=')[0]} = "):
        load_experiment("afhq128", [key])
