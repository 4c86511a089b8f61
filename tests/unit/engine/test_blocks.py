from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from qwenkit.engine.blocks import PAGE_SIZE, BlockManager, page_digest, pages_for, root_digest


def test_pages_are_rounded_up() -> None:
    assert [pages_for(n) for n in (0, 1, PAGE_SIZE, PAGE_SIZE + 1)] == [0, 1, 1, 2]


def test_what_is_taken_is_gone_and_comes_back() -> None:
    blocks = BlockManager(4)
    pages = blocks.take(3)
    assert pages == [0, 1, 2]
    assert blocks.take(2) is None
    assert blocks.num_used == 3
    blocks.release(pages)
    assert (blocks.num_free, blocks.num_used) == (4, 0)
    assert blocks.take(1) == [0], "memory that was used before is used again first"


def test_content_is_found_until_the_page_is_needed() -> None:
    blocks = BlockManager(3)
    first, second = blocks.take(2) or []
    blocks.remember(first, b"a")
    blocks.remember(second, b"b")
    blocks.release([first, second])
    assert blocks.find([b"a", b"b", b"c"]) == [first, second]
    assert blocks.find([b"x", b"b"]) == []
    assert blocks.num_cached == 2
    taken = blocks.take(2) or []
    assert second in taken, "the end of a prompt goes before its beginning"
    assert blocks.find([b"a", b"b"]) == [first]


def test_a_shared_page_stays_until_its_last_holder_lets_go() -> None:
    blocks = BlockManager(2)
    pages = blocks.take(1) or []
    blocks.share(pages)
    blocks.release(pages)
    assert blocks.num_used == 1
    blocks.release(pages)
    assert blocks.num_used == 0


def test_the_same_content_twice_is_remembered_once() -> None:
    blocks = BlockManager(2)
    first, second = blocks.take(2) or []
    blocks.remember(first, b"a")
    blocks.remember(second, b"a")
    blocks.release([first, second])
    assert blocks.find([b"a"]) == [first]
    assert blocks.num_cached == 1


def test_without_caching_nothing_is_kept() -> None:
    blocks = BlockManager(2, caching=False)
    pages = blocks.take(2) or []
    blocks.remember(pages[0], b"a")
    blocks.release(pages)
    assert blocks.find([b"a"]) == []


def test_forgetting_makes_every_page_blank() -> None:
    blocks = BlockManager(2)
    pages = blocks.take(2) or []
    blocks.remember(pages[0], b"a")
    blocks.release(pages)
    blocks.forget()
    assert (blocks.num_cached, blocks.num_free, blocks.find([b"a"])) == (0, 2, [])


@given(st.lists(st.integers(0, 2**31), max_size=4), st.lists(st.integers(0, 2**31), max_size=4))
def test_digests_differ_when_tokens_differ(a: list[int], b: list[int]) -> None:
    root = root_digest(1, None)
    assert (page_digest(root, a) == page_digest(root, b)) == (a == b)


def test_digests_depend_on_what_came_before() -> None:
    assert page_digest(root_digest(1, None), [1]) != page_digest(root_digest(3, None), [1])
    assert page_digest(root_digest(1, 0), [1]) != page_digest(root_digest(1, None), [1])


class _Pages(RuleBasedStateMachine):
    """Holders come, share, remember and go in any order."""

    @initialize(num_pages=st.integers(1, 12), caching=st.booleans())
    def start(self, num_pages: int, caching: bool) -> None:
        self.blocks = BlockManager(num_pages, caching=caching)
        self.held: list[list[int]] = []
        self.serial = 0

    @rule(count=st.integers(0, 6))
    def take(self, count: int) -> None:
        free = self.blocks.num_free
        pages = self.blocks.take(count)
        assert (pages is None) == (count > free)
        if pages:
            assert not set(pages) & {p for held in self.held for p in held}
            self.held.append(pages)

    @rule(data=st.data())
    def remember_and_share(self, data: st.DataObject) -> None:
        if not self.held:
            return
        pages = data.draw(st.sampled_from(self.held))
        for page in pages:
            self.serial += 1
            self.blocks.remember(page, b"%d" % (self.serial % 20))
        self.blocks.share(pages)
        self.held.append(list(pages))

    @rule(keys=st.lists(st.integers(0, 19), max_size=3))
    def share_found(self, keys: list[int]) -> None:
        pages = list(dict.fromkeys(self.blocks.find([b"%d" % key for key in keys])))
        self.blocks.share(pages)
        if pages:
            self.held.append(pages)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.held:
            pages = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            self.blocks.release(pages)

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "blocks"):
            self.blocks.check()
            assert self.blocks.num_used == len({p for held in self.held for p in held})


def test_random_operations_keep_every_page_in_one_place() -> None:
    run_state_machine_as_test(_Pages)
