"""One contract for all transforms, and what each of them is for."""

import copy
import pickle
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from helpers.cifti import write_cifti
from helpers.transform_samples import AFFINE, PRIORS, SHAPE, assert_same, sample
from monai.data import (
    CacheDataset,
    DataLoader,
    MetaTensor,
    get_track_meta,
    set_track_meta,
)
from monai.transforms import (
    Compose,
    ConcatItemsd,
    CropForegroundd,
    DeleteItemsd,
    Invertd,
    LoadImaged,
    Orientationd,
    RandAffined,
    RandCropByLabelClassesd,
    Randomizable,
    Spacingd,
    SpatialCropd,
)
from monai.utils import TransformBackends, set_determinism

import stipple_monai.transforms as transforms
from stipple_monai.data.checks import check_pair
from stipple_monai.errors import DatasetError, PositionError, PriorError
from stipple_monai.priors.organ import organ_position
from stipple_monai.priors.prior import SpatialPrior
from stipple_monai.pseudo_labels import select_certain
from stipple_monai.pseudo_labels.selection import select_top_k
from stipple_monai.transforms import (
    POSITION_KEY,
    CheckPaird,
    CheckScand,
    DecideLabel,
    DecideLabeld,
    LoadScand,
    OrganPosition,
    OrganPositiond,
    PriorAlign,
    PriorAlignd,
    PriorAugment,
    PriorAugmentd,
    SelectPseudoLabels,
    SelectPseudoLabelsd,
    SliceMajord,
    SpacingScand,
)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


class Case:
    """A dictionary transform with its array form, and what goes in and comes out."""

    def __init__(self, dictionary, array, reads, writes, *, position=True, arguments=()):
        self.dictionary, self.array = dictionary, array
        self.reads, self.writes, self.position = reads, writes, position
        self.arguments = arguments

    def sample(self, **options):
        return sample(position=self.position, **options)

    def apply_array(self, data):
        return self.array()(*[data[key] for key in (self.reads, *self.arguments)])


CASES = {
    "OrganPosition": Case(
        lambda **k: OrganPositiond("label", PRIORS, **k),
        lambda: OrganPosition(PRIORS),
        "label",
        POSITION_KEY,
        position=False,
    ),
    "PriorAlign": Case(
        lambda **k: PriorAlignd("image", PRIORS, mode="linear", **k),
        lambda: PriorAlign(PRIORS, mode="linear"),
        "image",
        "prior",
        arguments=(POSITION_KEY,),
    ),
    "PriorAugment": Case(
        lambda **k: PriorAugmentd(POSITION_KEY, (3, 4, 5), dropout=0.3, prob=0.8, **k),
        lambda: PriorAugment((3, 4, 5), dropout=0.3, prob=0.8),
        POSITION_KEY,
        POSITION_KEY,
    ),
    "SelectPseudoLabels": Case(
        lambda **k: SelectPseudoLabelsd("probability", share=0.3, **k),
        lambda: SelectPseudoLabels(share=0.3),
        "probability",
        "probability",
    ),
    "SliceMajor": Case(lambda **k: SliceMajord("image", **k), None, "image", "image"),
    "DecideLabel": Case(
        lambda **k: DecideLabeld("probability", "dice", **k),
        lambda: DecideLabel("dice"),
        "probability",
        "probability",
    ),
    "CheckScan": Case(lambda **k: CheckScand("image", **k), None, "image", ()),
    "CheckPair": Case(
        lambda **k: CheckPaird(("image", "label"), classes=3, **k), None, "image", ()
    ),
}
# MONAI's transforms but for some of it, compared with those; slices in `test_slices`
OF_MONAI = {"LoadScan", "SpacingScan", "RandSliceAffine"}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
every_array = pytest.mark.parametrize(
    "case", [c for c in CASES.values() if c.array], ids=[n for n, c in CASES.items() if c.array]
)


def seeded(transform, seed=3):
    if isinstance(transform, Randomizable):
        transform.set_random_state(seed)
    return transform


def different(a, b):
    try:
        assert_same(a, b)
    except AssertionError:
        return True
    return False


# The contract.


@every_case
def test_input_stays_as_it_is(case):
    data = case.sample()
    before = copy.deepcopy(data)
    seeded(case.dictionary())(data)
    assert_same(data, before)


@every_case
def test_only_the_result_is_new(case):
    data = case.sample()
    result = seeded(case.dictionary())(data)
    written = {case.writes} if case.writes else set()
    assert type(result) is dict
    assert result is not data
    assert result.keys() == data.keys() | written
    assert all(result[key] is data[key] for key in data.keys() - written)


@every_array
def test_array_input_stays_as_it_is(case):
    data = case.sample()
    before = copy.deepcopy(data)
    case.apply_array(data)
    assert_same(data, before)


@every_array
def test_dictionary_form_equals_array_form(case):
    data = case.sample()
    array = seeded(case.array())
    arguments = [data[key] for key in (case.reads, *case.arguments)]
    dictionary = seeded(case.dictionary())
    for _ in range(5):
        assert_same(dictionary(data)[case.writes], array(*arguments))


@every_case
def test_random_state_reproduces(case):
    data, transform = case.sample(), case.dictionary()
    first = [seeded(transform, 3)(data)] + [transform(data) for _ in range(5)]
    again = [seeded(transform, 3)(data)] + [transform(data) for _ in range(5)]
    other = [seeded(transform, 4)(data)] + [transform(data) for _ in range(5)]
    assert_same(first, again)
    assert different(first, other) == isinstance(transform, Randomizable)
    assert isinstance(transform, Randomizable) == (case is CASES["PriorAugment"])


@every_case
def test_a_given_random_state_object_is_used(case):
    data, transform = case.sample(), case.dictionary()
    if not isinstance(transform, Randomizable):
        return
    assert transform.set_random_state(state=np.random.RandomState(6)) is transform
    drawn = transform(data)
    assert_same(drawn, case.dictionary().set_random_state(seed=6)(data))


@pytest.mark.parametrize("name", ["PriorAlign", "SelectPseudoLabels"])
def test_results_on_a_grid_keep_its_affine(name):
    case = CASES[name]
    data = case.sample()
    result = case.dictionary()(data)[case.writes]
    assert isinstance(result, MetaTensor)
    assert result.shape[1:] == SHAPE
    torch.testing.assert_close(result.affine, torch.from_numpy(AFFINE))


@every_case
def test_missing_keys(case):
    data = case.sample()
    del data[case.reads]
    with pytest.raises(KeyError, match=case.reads):
        case.dictionary()(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = case.dictionary(allow_missing_keys=True)(data)
    assert_same(result, data)


@every_case
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_copies_and_pickles_work_alike(case, copied):
    data = case.sample()
    transform = seeded(case.dictionary())
    twin = copied(transform)
    assert_same([transform(data) for _ in range(3)], [twin(data) for _ in range(3)])
    if case.array:
        transform = seeded(case.array())
        arguments = [data[key] for key in (case.reads, *case.arguments)]
        twin = copied(transform)
        assert_same(transform(*arguments), twin(*arguments))


@every_case
def test_backend_is_declared(case):
    backend = type(case.dictionary()).backend
    assert backend
    assert set(backend) <= {TransformBackends.TORCH, TransformBackends.NUMPY}
    if case.array:
        assert type(case.array()).backend == backend


@pytest.mark.parametrize("name", list(CASES))
def test_aliases(name):
    dictionary = type(CASES[name].dictionary())
    for suffix in ("d", "D", "Dict"):
        assert getattr(transforms, name + suffix) is dictionary
        assert name + suffix in transforms.__all__


def test_every_public_transform_has_a_case():
    plain = {n for n in transforms.__all__ if not n.endswith(("d", "D", "Dict"))}
    # `OwnCases` belongs to the dictionary form of two others, see test_leave_one_out;
    # a reader is no transform.
    assert plain - {"CASES_KEY", "OwnCases", "POSITION_KEY", "ScanReader"} == {
        n for n, c in CASES.items() if c.array
    }
    assert {n[:-1] for n in transforms.__all__ if n.endswith("d")} == {*CASES, *OF_MONAI}


def test_load_scan_is_monais_loader_with_its_aliases(tmp_path):
    assert transforms.LoadScanD is transforms.LoadScanDict is transforms.LoadScand
    assert transforms.SpacingScanD is transforms.SpacingScanDict is transforms.SpacingScand
    nib.save(nib.Nifti1Image(np.arange(24.0).reshape(2, 3, 4), AFFINE), tmp_path / "a.nii.gz")
    data = {"image": str(tmp_path / "a.nii.gz"), "note": "kept"}
    options = {"ensure_channel_first": True, "allow_missing_keys": True}
    read = transforms.LoadScand(("image", "label"), **options)(data)
    expected = LoadImaged(("image", "label"), **options)(data)
    assert read.keys() == expected.keys()
    np.testing.assert_array_equal(read["image"], expected["image"])
    np.testing.assert_array_equal(read["image"].affine, expected["image"].affine)
    twin = pickle.loads(pickle.dumps(transforms.LoadScand("image", ensure_channel_first=True)))
    np.testing.assert_array_equal(twin(data)["image"], read["image"])
    # MONAI's reader where it is given
    given = transforms.LoadScand("image", reader="NibabelReader", ensure_channel_first=True)(data)
    np.testing.assert_array_equal(given["image"], read["image"])
    (tmp_path / "a.nii.gz").write_bytes(b"cut")
    with pytest.raises(DatasetError, match=r"`image` must be a scan .*a\.nii\.gz"):
        transforms.LoadScand("image")(data)


def test_load_scan_reads_nrrd_as_nifti_and_refuses_other_formats(tmp_path):
    itk = pytest.importorskip("itk")  # a lent GPU machine has none
    values = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nib.save(nib.Nifti1Image(values, np.diag([-2.0, -3, 4, 1])), tmp_path / "a.nii.gz")
    same = itk.image_from_array(values.transpose(2, 1, 0).copy())
    same.SetSpacing([2.0, 3.0, 4.0])
    itk.imwrite(same, str(tmp_path / "a.nrrd"))
    loader = transforms.LoadScand("image", ensure_channel_first=True)
    one, other = (loader({"image": str(tmp_path / f"a.{n}")})["image"] for n in ("nii.gz", "nrrd"))
    np.testing.assert_array_equal(other, one)
    np.testing.assert_allclose(other.affine, one.affine)
    write_cifti(tmp_path / "a.dtseries.nii")
    with pytest.raises(DatasetError, match=r"must be a NIfTI file, got another format in .*dtser"):
        loader({"image": str(tmp_path / "a.dtseries.nii")})


@every_case
def test_within_compose(case):
    data = case.sample()
    pipeline = Compose([case.dictionary()]).set_random_state(5)
    first = [pipeline(data) for _ in range(3)]
    pipeline.set_random_state(5)
    assert_same(first, [pipeline(data) for _ in range(3)])


@pytest.mark.parametrize("name", ["PriorAugment", "SelectPseudoLabels"])
@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor, MetaTensor])
def test_the_kind_of_array_that_goes_in_comes_out(name, convert):
    case = CASES[name]
    data = case.sample()
    expected = seeded(case.array())(data[case.reads])
    given = convert(np.asarray(data[case.reads]))
    result = seeded(case.array())(given)
    assert type(result) is type(given)
    np.testing.assert_array_equal(np.asarray(result), np.asarray(expected))
    assert np.asarray(result).dtype == np.asarray(expected).dtype


@pytest.mark.parametrize("convert", [np.asarray, lambda v: v.as_tensor()], ids=["numpy", "torch"])
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("OrganPosition", DatasetError, "A label map must be a MetaTensor or a file, got"),
        ("PriorAlign", PriorError, "`image` must be a MetaTensor C W H D, .* keep MONAI's meta"),
        ("CheckScan", DatasetError, "`image` must be a MetaTensor, .* keep MONAI's metadata"),
        ("CheckPair", DatasetError, "`image` must be a MetaTensor, .* keep MONAI's metadata"),
    ],
)
def test_what_needs_an_affine_says_so(name, error, message, convert):
    case = CASES[name]
    data = case.sample()
    for key in ("image", "label"):
        data[key] = convert(data[key])
    with pytest.raises(error, match=message):
        case.dictionary()(data)
    if name == "PriorAlign":
        data[POSITION_KEY] = np.full((2, 3), np.nan)
        with pytest.raises(error, match=message):
            case.dictionary()(data)


@pytest.mark.parametrize("name", ["OrganPosition", "PriorAlign", "PriorAugment"])
@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor, torch.Tensor.tolist])
def test_positions_may_be_of_any_kind(name, convert):
    case = CASES[name]
    data = sample()
    expected = seeded(case.dictionary())(data)[case.writes]
    data[POSITION_KEY] = convert(data[POSITION_KEY])
    result = seeded(case.dictionary())(data)[case.writes]
    np.testing.assert_array_equal(np.asarray(result), np.asarray(expected))


@pytest.fixture
def untracked():
    before = get_track_meta()
    set_track_meta(False)
    yield
    set_track_meta(before)


@pytest.mark.usefixtures("untracked")
@pytest.mark.parametrize("name", list(CASES))
def test_without_tracking_of_metadata(name):
    """MONAI's own transforms give plain tensors then; those that need an affine had it before."""
    case = CASES[name]
    data = case.sample()
    result = seeded(case.dictionary())(data)
    if name == "PriorAlign":
        assert type(result["prior"]) is torch.Tensor
    if name == "SelectPseudoLabels":
        data["probability"] = data["probability"].as_tensor()
        plain = case.dictionary()(data)["probability"]
        assert type(plain) is torch.Tensor
        assert torch.equal(plain, torch.as_tensor(result["probability"]))


def pipeline():
    return Compose(
        [
            OrganPositiond("label", PRIORS),
            RandAffined("image", prob=1.0, translate_range=2, padding_mode="border"),
            PriorAugmentd(translation_mm=(3, 4, 5), dropout=0.2),
            PriorAlignd("image", PRIORS),
            ConcatItemsd(["image", "prior"], name="image"),
            DeleteItemsd(["prior", "probability", "label"]),
        ]
    )


def loaded(workers, *, epochs=2):
    set_determinism(seed=12)
    try:
        items = [sample(position=False, seed=i) for i in range(4)]
        dataset = CacheDataset(items, pipeline(), progress=False)
        loader = DataLoader(dataset, batch_size=2, shuffle=True, num_workers=workers)
        return [
            (batch["image"].as_tensor().clone(), batch[POSITION_KEY].clone())
            for _ in range(epochs)
            for batch in loader
        ]
    finally:
        set_determinism(seed=None)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_cached_dataset_and_loader(workers):
    first, again = loaded(workers), loaded(workers)
    assert_same(first, again)
    assert first[0][0].shape == (2, 3, *SHAPE)
    positions = torch.cat([p for _, p in first])
    assert positions.shape == (8, 2, 3)
    assert len(torch.unique(positions[torch.isfinite(positions).all(-1)][:, 0])) > 10
    given = sample()[POSITION_KEY]
    limits = torch.tensor([3.0, 4.0, 5.0])
    assert ((positions - given).abs().nan_to_num() <= limits).all()


@pytest.mark.cuda
@needs_cuda
@every_case
def test_cuda_equals_cpu(case):
    data = case.sample()
    expected = seeded(case.dictionary())(data)
    on_gpu = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in data.items()}
    result = seeded(case.dictionary())(on_gpu)
    if case.writes:
        value = result[case.writes]
        on_cpu = case.writes == POSITION_KEY and case.reads != POSITION_KEY
        assert value.device.type == ("cpu" if on_cpu else "cuda")
        torch.testing.assert_close(
            torch.as_tensor(value.cpu()), torch.as_tensor(expected[case.writes]), equal_nan=True
        )


# Positions.


def test_organ_position_is_the_function_for_each_prior():
    label = sample()["label"]
    priors = [PRIORS[1], SpatialPrior(PRIORS[0].probability, spacing_mm=(1, 1, 1), center="mass")]
    label[0, 2, 3, 1] = 0
    found = OrganPosition(priors)(label)
    assert found.dtype == torch.float64
    assert torch.equal(found[0], organ_position(label, organ=2))
    assert torch.equal(found[1], organ_position(label, organ=1, center="mass"))
    assert not torch.equal(found[1], organ_position(label, organ=1))


def test_a_missing_organ_has_an_unknown_position_and_a_warning():
    data = sample(position=False)
    data["label"][data["label"] == 2] = 0
    with pytest.warns(UserWarning, match=r"one\.nii does not contain organ 2.*stays neutral"):
        found = OrganPositiond("label", PRIORS)(data)[POSITION_KEY]
    assert torch.equal(found[0], organ_position(data["label"], organ=1))
    assert torch.isnan(found[1]).all()


@pytest.mark.parametrize(
    "given", [[[1, 2, 3], [None, None, None]], np.array([[1, 2, 3], [np.nan] * 3], np.float32)]
)
def test_a_position_that_the_datalist_gives_is_kept(given):
    data = {**sample(position=False), POSITION_KEY: given}
    found = OrganPositiond("label", PRIORS)(data)[POSITION_KEY]
    assert found.dtype == torch.float64
    assert found[0].tolist() == [1, 2, 3]
    assert torch.isnan(found[1]).all()
    assert data[POSITION_KEY] is given
    placed = PriorAlignd("image", PRIORS)(data)["prior"]
    assert torch.equal(placed, PriorAlign(PRIORS)(data["image"], found))


# Placing.


def aligned(data, **options):
    return PriorAlignd("image", PRIORS, **options)(data)["prior"].as_tensor()


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_each_prior_is_placed_at_its_position(mode):
    data = sample()
    placed = aligned(data, mode=mode)
    for k, prior in enumerate(PRIORS):
        expected = prior.place(data[POSITION_KEY][k], data["image"], mode=mode)
        assert torch.equal(placed[k : k + 1], expected.as_tensor())
        assert placed[k].max() > 0.2


def densely(data):
    return {**data, "dense": MetaTensor(aligned(data), affine=AFFINE)}


@pytest.mark.slow
def test_on_random_slices_the_prior_is_the_slice_of_the_dense_one():
    crop = RandCropByLabelClassesd(
        ["image", "label", "dense"],
        label_key="label",
        spatial_size=(9, 7, 1),
        ratios=[1, 1, 1],
        num_classes=3,
        num_samples=12,
    ).set_random_state(2)
    slices = crop(densely(sample()))
    assert len({float(s["image"].affine[2, 3]) for s in slices}) > 4
    for data in slices:
        assert data["image"].shape == (1, 9, 7, 1)
        torch.testing.assert_close(aligned(data), data["dense"].as_tensor(), rtol=0, atol=1e-5)
    assert max(float(s["dense"].max()) for s in slices) > 0.2


@pytest.mark.parametrize("start", [(0, 0, 0), (3, 5, 2), (6, 6, 6)])
def test_on_a_crop_the_prior_is_the_crop_of_the_dense_one(start):
    end = [a + 6 for a in start]
    crop = SpatialCropd(["image", "dense"], roi_start=start, roi_end=end)
    data = crop(densely(sample()))
    torch.testing.assert_close(aligned(data), data["dense"].as_tensor(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("codes", ["RAS", "PIL"])
def test_on_a_reoriented_image_the_prior_is_the_reoriented_dense_one(codes):
    turn = Orientationd(["image", "dense"], axcodes=codes, labels=None)
    data = turn(densely(sample()))
    torch.testing.assert_close(aligned(data), data["dense"].as_tensor(), rtol=0, atol=1e-5)


def test_after_random_affine_the_prior_has_moved_with_the_image():
    """A dense prior is interpolated twice, so that a smooth one agrees and no other would."""
    axes = torch.meshgrid(*[torch.linspace(-2.5, 2.5, n) for n in (25, 25, 15)], indexing="ij")
    smooth = SpatialPrior(torch.exp(-sum(a**2 for a in axes) / 2), spacing_mm=(2, 2, 3.5), organ=1)
    grid = MetaTensor(torch.zeros(1, 32, 30, 28), affine=np.diag([-2.0, 2.0, 2.5, 1.0]))
    position = torch.tensor([[-31.0, 29.0, 34.0]])
    align = PriorAlignd("image", [smooth], mode="linear")
    data = {"image": grid, POSITION_KEY: position}
    data["dense"] = align(data)["prior"]
    random = RandAffined(
        ["image", "dense"],
        prob=1.0,
        rotate_range=(0.2, 0.2, 0.3),
        translate_range=5,
        scale_range=0.15,
        mode="bilinear",
        padding_mode="zeros",
    )
    for seed in range(6):
        moved = random.set_random_state(seed)(data)
        placed, dense = align(moved)["prior"].as_tensor(), moved["dense"].as_tensor()
        inside = torch.zeros_like(dense, dtype=torch.bool)
        inside[:, 8:-8, 8:-8, 8:-8] = True
        assert (placed - dense).abs()[inside].max() < 0.05
        assert (dense - data["dense"].as_tensor()).abs()[inside].max() > 0.12


NAN = [float("nan")] * 3


def test_neutral_values_of_a_softmax_prior():
    data = sample()
    unknown = PriorAlign(PRIORS)(data["image"], [NAN, NAN])
    torch.testing.assert_close(unknown.as_tensor(), torch.full((2, *SHAPE), 1 / 3))

    known = data[POSITION_KEY][0].tolist()
    one = PriorAlign(PRIORS)(data["image"], [known, NAN]).as_tensor()
    assert torch.equal(one[0], aligned(data)[0])
    torch.testing.assert_close(one[1], 1 - one.sum(0))
    third = SpatialPrior(PRIORS[0].probability, spacing_mm=(2, 2, 2), organ=3)
    two = PriorAlign([*PRIORS, third])(data["image"], [NAN, known, NAN]).as_tensor()
    background = 1 - two.sum(0)
    torch.testing.assert_close(two[0], background)
    torch.testing.assert_close(two[2], background)


def test_neutral_values_stay_probabilities_where_organs_overlap():
    full = [SpatialPrior(np.ones((40, 40, 40)), spacing_mm=(2, 2, 2), organ=k) for k in (1, 2, 3)]
    data = sample()
    center = data[POSITION_KEY][0].tolist()
    placed = PriorAlign(full)(data["image"], [center, center, NAN])
    assert placed[2].min() >= 0
    assert placed[2].max() == 0


def test_neutral_values_of_a_sigmoid_prior():
    data = sample()
    align = PriorAlign(PRIORS, activation="sigmoid")
    placed = align(data["image"], [NAN, data[POSITION_KEY][1].tolist()]).as_tensor()
    assert (placed[0] == 0.5).all()
    assert torch.equal(placed[1], aligned(data)[1])


def test_half_a_position_is_unknown():
    position = [[1.0, float("nan"), 3.0], [1.0, float("inf"), 2.0]]
    placed = PriorAlign(PRIORS)(sample()["image"], position)
    torch.testing.assert_close(placed.as_tensor(), torch.full((2, *SHAPE), 1 / 3))


def test_given_positions_come_before_the_label():
    data = sample()
    given = {**data, POSITION_KEY: data[POSITION_KEY] + 4}
    by_label = {k: v for k, v in data.items() if k != POSITION_KEY}
    assert torch.equal(aligned(by_label), aligned(data))
    assert not torch.equal(aligned(given), aligned(data))
    renamed = {**by_label, "seg": data["label"], "where": given[POSITION_KEY]}
    del renamed["label"]
    assert torch.equal(aligned(renamed, label_key="seg"), aligned(data))
    assert torch.equal(aligned(renamed, position_key="where"), aligned(given))


@pytest.mark.parametrize("label_key", ["other", None])
def test_without_position_and_label_the_prior_is_neutral_with_a_warning(label_key):
    data = sample(position=False)
    with pytest.warns(UserWarning, match="There is neither 'organ_position' nor"):
        placed = aligned(data, label_key=label_key)
    torch.testing.assert_close(placed, torch.full((2, *SHAPE), 1 / 3))


def test_positions_that_are_measured_after_a_crop_are_warned_of():
    data = sample(position=False)
    crop = SpatialCropd(["image", "label"], roi_start=(1, 0, 0), roi_end=SHAPE)
    with pytest.warns(UserWarning, match=r"'label' after SpatialCrop, .*put OrganPositiond before"):
        aligned(crop(data))
    whole = CropForegroundd(["image", "label"], source_key="label", margin=20, allow_smaller=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aligned(whole(data))


def test_where_there_is_no_image_nothing_is_measured_or_warned_of():
    data = {"note": "no image, no label, no position"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert PriorAlignd("image", PRIORS, allow_missing_keys=True)(data) == data


def test_several_images_each_have_their_prior():
    data = sample()
    data["second"] = SpatialCropd("second", roi_start=(2, 2, 2), roi_end=(8, 8, 8))(
        {"second": data["image"]}
    )["second"]
    align = PriorAlignd(["image", "second"], PRIORS, prior_key=["prior", "prior2"])
    result = align(data)
    assert torch.equal(result["prior"].as_tensor(), aligned(data))
    assert result["prior2"].shape == (2, 6, 6, 6)


# Augmentation.


def draws(count, **options):
    augment = PriorAugment((3.0, 6.0, 12.0), **options).set_random_state(1)
    return torch.stack([augment(torch.zeros(2, 3, dtype=torch.float64)) for _ in range(count)])


def test_shifts_are_uniform_within_the_range_of_each_axis():
    shifts = draws(3000) / torch.tensor([3.0, 6.0, 12.0])
    assert shifts.abs().max() <= 1
    quantiles = torch.tensor([0.02, 0.25, 0.5, 0.75, 0.98], dtype=torch.float64)
    measured = torch.quantile(shifts.reshape(3000, 6), quantiles, dim=0)
    torch.testing.assert_close(
        measured, (2 * quantiles - 1)[:, None].expand(5, 6), rtol=0, atol=0.08
    )


def test_organs_and_axes_are_shifted_independently():
    correlation = torch.corrcoef(draws(3000).reshape(3000, 6).T)
    assert (correlation - torch.eye(6)).abs().max() < 0.07


def test_one_number_is_the_range_of_every_axis():
    augment = PriorAugment(5.0).set_random_state(0)
    shifts = torch.stack([augment(torch.zeros(1, 3)) for _ in range(300)]).abs().amax(0)[0]
    assert ((shifts > 4.5) & (shifts <= 5)).all()


def test_probability_of_the_shift():
    moved = (draws(3000, prob=0.3) != 0).any(-1).any(-1).double().mean()
    assert moved == pytest.approx(0.3, abs=0.03)
    assert (draws(20, prob=0.0) == 0).all()


@pytest.mark.slow
def test_dropout_forgets_all_organs_together_and_as_often_as_it_says():
    forgotten = torch.isnan(draws(3000, dropout=0.25)).reshape(3000, 6)
    assert (forgotten.all(1) == forgotten.any(1)).all()
    assert forgotten[:, 0].double().mean() == pytest.approx(0.25, abs=0.03)
    assert torch.isnan(draws(5, dropout=1.0, prob=0.0)).all()
    assert not torch.isnan(draws(500)).any()


def test_whole_numbers_are_shifted_by_fractions():
    augment = PriorAugment(0.4, dropout=0.0).set_random_state(0)
    result = augment(torch.tensor([[1, 2, 3]]))
    assert result.dtype == torch.float64
    assert not torch.equal(result, result.round())
    assert np.isnan(PriorAugment(1, dropout=1.0)(np.array([[1, 2, 3]]))).all()


def test_unknown_positions_stay_unknown():
    result = PriorAugment(3).set_random_state(0)(torch.tensor([NAN, [1.0, 2.0, 3.0]]))
    assert torch.isnan(result[0]).all()
    assert torch.isfinite(result[1]).all()


def test_the_same_draw_can_be_applied_again():
    augment = PriorAugment(3).set_random_state(0)
    first = augment(torch.zeros(2, 3))
    assert torch.equal(augment(torch.zeros(2, 3), randomize=False), first)
    assert not torch.equal(augment(torch.zeros(2, 3)), first)


def test_all_keys_get_the_same_shift_and_priors_none():
    data = {**sample(), "other": torch.zeros(2, 3, dtype=torch.float64), "prior": PRIORS}
    before = [p.probability.clone() for p in PRIORS]
    augment = PriorAugmentd([POSITION_KEY, "other"], 3.0).set_random_state(0)
    result = augment(data)
    torch.testing.assert_close(result[POSITION_KEY] - data[POSITION_KEY], result["other"])
    assert result["prior"] is PRIORS
    assert all(torch.equal(p.probability, b) for p, b in zip(PRIORS, before, strict=True))


# Pseudo-labels and pairs.


@pytest.mark.parametrize(
    "options",
    [
        {"share": 0.2},
        {"count": [5, 9], "ignore": 200},
        {"share": 1.0, "minimum": 0.6},
        {"share": 1.0, "components": 1},
    ],
)
def test_pseudo_labels_are_those_of_the_function(options):
    data = sample()
    result = SelectPseudoLabelsd("probability", **options)(data)["probability"]
    expected = select_top_k(data["probability"].as_tensor(), **options)
    assert result.dtype == torch.uint8
    assert torch.equal(result.as_tensor(), expected)
    assert len(torch.unique(expected)) == 4
    assert result.meta["filename_or_obj"] == "one.nii"
    torch.testing.assert_close(result.affine, torch.from_numpy(AFFINE))


@pytest.mark.parametrize(
    "options", [{}, {"minimum": 0.6}, {"background_minimum": 0.9}, {"components": 1, "ignore": 99}]
)
def test_certain_pseudo_labels_are_those_of_the_function(options):
    data = sample()
    result = SelectPseudoLabelsd("probability", "certain", **options)(data)["probability"]
    expected = select_certain(data["probability"].as_tensor(), **options)
    assert torch.equal(result.as_tensor(), expected)
    assert len(torch.unique(expected)) > 1


def test_pseudo_labels_can_be_inverted():
    before = Orientationd("probability", axcodes="RAS", labels=None)
    original = sample()
    data = before(original)
    result = SelectPseudoLabelsd("probability", share=0.5)(data)
    assert [o["class"] for o in result["probability"].applied_operations] == ["Orientation"]
    back = before.inverse(result)["probability"]
    expected = select_top_k(original["probability"].as_tensor(), share=1.0)
    assert torch.equal(back.as_tensor() > 0, expected > 0)


def test_a_pair_that_belongs_together_passes_and_others_do_not():
    data = sample()
    assert CheckPaird(classes=3)(data) == data
    assert CheckPaird(["image", "label"], classes=3, channels=1)(data) == data
    with pytest.raises(DatasetError, match="`label` must have values 0 to 1 or 255, got 2"):
        CheckPaird(classes=2)(data)
    with pytest.raises(DatasetError, match=r"`image` must be a 3D volume of shape \(2, W, H, D\)"):
        CheckPaird(classes=3, channels=2)(data)
    shifted = {**data, "label": MetaTensor(data["label"].as_tensor(), affine=np.eye(4))}
    with pytest.raises(DatasetError, match="`label` must have the image's affine"):
        CheckPaird(classes=3)(shifted)
    with pytest.raises(DatasetError, match="`label` must have the image's affine"):
        check_pair(shifted["image"], shifted["label"], classes=3)


def test_a_scan_that_is_no_finite_volume():
    data = sample()
    assert CheckScand("image")(data) == data
    with pytest.raises(DatasetError, match=r"`image` must be a 3D volume of shape \(2, W, H, D\)"):
        CheckScand("image", channels=2)(data)
    data["image"][0, 1, 2, 3] = torch.inf
    with pytest.raises(DatasetError, match=r"`image` must be finite, got 1 voxels .* one\.nii"):
        CheckScand("image")(data)


def with_path():
    data = sample()
    return {"image": data["image"], "image_path": "scans/one.nii", "label": data["label"]}


def assert_same_scan(a, b):
    """Equal voxels and grids; their histories name other objects."""
    assert_same(a.as_tensor(), b.as_tensor())
    assert_same(dict(a.meta), dict(b.meta))


def test_spacing_stops_at_a_path_beside_the_scan_and_ours_does_not():
    data, pixdim = with_path(), (2.0, 2.0, 3.0)
    with pytest.raises(AttributeError, match="update"):
        Spacingd("image", pixdim=pixdim)(data)
    ours = SpacingScand("image", pixdim=pixdim)(data)
    del data["image_path"]
    monais = Spacingd("image", pixdim=pixdim)(data)
    assert_same_scan(ours.pop("image"), monais.pop("image"))
    assert ours.pop("image_path") == "scans/one.nii"
    assert_same(ours, monais)


@pytest.mark.parametrize("lazy", [False, True])
def test_spacing_in_a_pipeline_is_monais(lazy):
    keys, modes = ("image", "label"), ("bilinear", "nearest")
    found = []
    for spacing in (SpacingScand, Spacingd):
        data = with_path()
        if spacing is Spacingd:
            del data["image_path"]
        steps = [
            Orientationd(keys, axcodes="LPS", labels=None),
            spacing(keys, pixdim=(2.0, 2.0, 3.0), mode=modes),
        ]
        pipeline = Compose(steps, lazy=lazy)
        result = pipeline(data)
        found.append({key: result[key] for key in keys})
        back = pipeline.inverse(result)
        assert back["image"].shape == data["image"].shape
    for key in keys:
        assert_same_scan(found[0][key], found[1][key])


def test_spacing_with_missing_keys():
    spacing = SpacingScand(("image", "scan"), pixdim=(2.0, 2.0, 2.0), allow_missing_keys=True)
    assert spacing(with_path())["image"].shape != sample()["image"].shape
    with pytest.raises(KeyError, match="scan"):
        SpacingScand(("image", "scan"), pixdim=(2.0, 2.0, 2.0))(with_path())


@pytest.mark.parametrize("kind", [MetaTensor, np.asarray])
def test_scans_in_memory_are_not_loaded(kind, tmp_path):
    data = {"image": kind(np.zeros((2, 3, 4))), "image_path": "scans/one.nii"}
    assert LoadScand("image")(data) == data
    nib.save(nib.Nifti1Image(np.ones((2, 3, 4)), np.eye(4)), tmp_path / "one.nii")
    loaded = LoadScand("image")({"image": str(tmp_path / "one.nii")})
    assert loaded["image"].shape == (2, 3, 4)
    assert LoadScand("image", allow_missing_keys=True)({"label": 1}) == {"label": 1}


# In MONAI's pipelines.


def test_the_network_input_keeps_metadata_and_history_of_the_image():
    before = Compose(
        [
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(2.0, 2.0, 2.0)),
        ]
    )
    after = Compose(
        [
            PriorAlignd("image", PRIORS),
            ConcatItemsd(["image", "prior"], name="image"),
            DeleteItemsd("prior"),
        ]
    )
    spaced = before(sample())
    result = after(spaced)
    image = result["image"]
    assert "prior" not in result
    assert image.shape == (3, *spaced["image"].shape[1:])
    assert torch.equal(image[1:].as_tensor(), aligned(spaced))
    assert_same(image.applied_operations, spaced["image"].applied_operations)
    assert_same(dict(image.meta), dict(spaced["image"].meta))
    result["pred"] = MetaTensor(image[:1].as_tensor().clone())
    back = Invertd("pred", transform=before, orig_keys="image", nearest_interp=False)(result)
    assert back["pred"].shape == (1, *SHAPE)
    torch.testing.assert_close(back["pred"].affine, torch.from_numpy(AFFINE))


@pytest.mark.parametrize("keys", ["image", ["image", "label"], ["image", "prior"]])
def test_spacing_leaves_positions_alone(keys):
    data = sample()
    data["prior"] = PriorAlign(PRIORS)(data["image"], data[POSITION_KEY])
    result = Spacingd(keys, pixdim=(3.0, 2.0, 2.0))(data)
    assert result["image"].shape != data["image"].shape
    assert torch.equal(result[POSITION_KEY], data[POSITION_KEY])
    if "prior" not in keys:
        assert result["prior"] is data["prior"]


# Errors.


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: OrganPosition([]), PriorError, "`priors` must be one SpatialPrior or more"),
        (lambda: PriorAlign(["a.nii"]), PriorError, "load each with `SpatialPrior.load"),
        (
            lambda: PriorAlign(PRIORS, activation="relu"),
            PriorError,
            "`activation` must be 'softmax' or 'sigmoid', got 'relu'",
        ),
        (
            lambda: PriorAlignd(["image", "second"], PRIORS),
            PriorError,
            r"`prior_key` must name a key for each of \('image', 'second'\), got \('prior',\)",
        ),
        (
            lambda: PriorAugment((1, -1, 1)),
            PositionError,
            r"`translation_mm` must be finite and at least 0 along each axis, got \(1, -1, 1\)",
        ),
        (
            lambda: PriorAugment(float("nan")),
            PositionError,
            "`translation_mm` must be finite and at least 0",
        ),
        (
            lambda: PriorAugment(1, dropout=1.2),
            PositionError,
            r"`dropout` must be a probability in \[0, 1\], got 1\.2",
        ),
        (lambda: PriorAugment((1, 2)), ValueError, "[Ss]equence must have length 3"),
        (
            lambda: CheckPaird(["image"], classes=2),
            DatasetError,
            r"`keys` must be image and label, got \('image',\)",
        ),
    ],
)
def test_errors_of_construction(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("position", [[1.0, 2.0, 3.0], [[1.0, 2.0]], "there", [[1, 2, 3], None]])
def test_positions_that_are_no_points(position):
    data = {**sample(), POSITION_KEY: position}
    message = r"`positions_mm` must be \(K, 3\), a point in RAS mm for each organ"
    for name in ("OrganPosition", "PriorAlign", "PriorAugment"):
        with pytest.raises(PositionError, match=message):
            CASES[name].dictionary()(data)


def test_errors_of_a_call():
    image = sample()["image"]
    with pytest.raises(
        PositionError, match=r"must be \(2, 3\), a point for each prior, got the shape \(1, 3\)"
    ):
        PriorAlign(PRIORS)(image, [[1.0, 2.0, 3.0]])
    with pytest.raises(PriorError, match=r"C W H D, .* \(1, 14, 12\): .* a slice as W × H × 1"):
        PriorAlign(PRIORS)(image[..., 0], [NAN, NAN])
    with pytest.raises(PriorError, match="`mode` must be 'auto', 'nearest' or 'linear'"):
        PriorAlign(PRIORS, mode="cubic")(image, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="exactly one of `share` and `count`"):
        SelectPseudoLabels()(sample()["probability"])
    with pytest.raises(ValueError, match="`rule` must be 'top_k' or 'certain', got 'best'"):
        SelectPseudoLabels("best")
    with pytest.raises(ValueError, match="`share` and `count` must be None with the rule 'certain"):
        SelectPseudoLabels("certain", share=0.5)
