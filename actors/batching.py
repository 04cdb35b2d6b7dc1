"""Dynamic batching: what waits while a forward pass runs becomes the next forward pass."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class DynamicBatcher(Generic[Item, Result]):
    """Collects items from many callers and hands them to one function, up to a budget at a time.

    Nobody waits for a batch to fill: an idle function starts at once with what there is, and while it
    runs the next batch gathers. The function runs in a thread of its own, so callers stay responsive.
    """

    def __init__(
        self,
        function: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        cost: Callable[[Item], int],
        budget: int,
    ) -> None:
        self._function = function
        self._cost = cost
        self._budget = budget
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._runner: asyncio.Task[None] | None = None
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batch")

    async def submit(self, item: Item) -> Result:
        """The function's result for this item. Raises what the function raised for the item's batch."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._forget_who_left():
            batch = self._take()
            try:
                items = [item for item, _ in batch]
                results = await loop.run_in_executor(self._executor, self._function, items)
                assert len(results) == len(items), f"{len(results)} results for {len(items)} items"
            except BaseException as error:  # handed to every caller of the batch
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)

    def _forget_who_left(self) -> bool:
        """Whether anybody waits still: a caller that was cancelled wants no result."""
        self._waiting = [(item, future) for item, future in self._waiting if not future.done()]
        return bool(self._waiting)

    def _take(self) -> list[tuple[Item, "asyncio.Future[Result]"]]:
        """The longest run of waiting items within the budget, one at least, in order of arrival."""
        count, spent = 1, self._cost(self._waiting[0][0])
        while count < len(self._waiting) and spent + self._cost(self._waiting[count][0]) <= self._budget:
            spent += self._cost(self._waiting[count][0])
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch
