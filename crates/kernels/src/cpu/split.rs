//! Disjoint mutable pieces of arrays for the chunks of a parallel region.
//!
//! Kernels share work by handing each chunk its own piece of every output. The types here make the pieces
//! disjoint by construction, so the kernels need no unsafe code.
#![allow(unsafe_code)]

use std::marker::PhantomData;

/// Something that falls into numbered pieces which may be used at the same time.
///
/// # Safety
/// Pieces of different numbers must not overlap.
pub(super) unsafe trait Split: Sync {
    type Piece;

    /// Number of pieces.
    fn count(&self) -> usize;

    /// Piece `index`.
    ///
    /// # Safety
    /// `index` is below `count`, each piece is asked for at most once while any of them is in use, and none
    /// is used after `self` is gone.
    unsafe fn piece(&self, index: usize) -> Self::Piece;
}

/// Columns cut into blocks of at most `width` that do not cross the borders of groups.
///
/// Group `g` has columns `at + g * stride ..+ group`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns {
    pub(super) at: usize,
    pub(super) groups: usize,
    pub(super) group: usize,
    pub(super) stride: usize,
    pub(super) width: usize,
}

impl Columns {
    /// `n` columns in blocks of `width`.
    pub(super) fn all(n: usize, width: usize) -> Columns {
        Columns { at: 0, groups: 1, group: n, stride: n, width }
    }

    /// `groups` adjacent groups that cover `n` columns, in blocks of `width`.
    pub(super) fn grouped(n: usize, groups: usize, width: usize) -> Columns {
        Columns { at: 0, groups, group: n / groups, stride: n / groups, width }
    }

    /// The same blocks of an array with `factor` elements per column.
    pub(super) fn scaled(self, factor: usize) -> Columns {
        Columns {
            at: self.at * factor,
            groups: self.groups,
            group: self.group * factor,
            stride: self.stride * factor,
            width: self.width * factor,
        }
    }

    fn per_group(&self) -> usize {
        self.group.div_ceil(self.width)
    }

    /// Number of blocks.
    pub(super) fn count(&self) -> usize {
        self.groups * self.per_group()
    }

    /// Group, first column within the group, and width of block `index`.
    pub(super) fn block(&self, index: usize) -> (usize, usize, usize) {
        let (group, block) = (index / self.per_group(), index % self.per_group());
        let start = block * self.width;
        (group, start, self.width.min(self.group - start))
    }
}

/// The tiles of a row-major array: blocks of rows times blocks of columns. The row block is the part of
/// the index that changes fastest, so that neighbouring chunks share columns (rows of weights).
pub(super) struct Tiles<'a, T> {
    ptr: *mut T,
    rows: usize,
    stride: usize,
    row_block: usize,
    columns: Columns,
    array: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Tiles` stands for an exclusive borrow of the array and gives out only disjoint parts of it, so
// sharing it with another thread is like sending that thread a `&mut [T]`.
unsafe impl<T: Send> Sync for Tiles<'_, T> {}

impl<'a, T> Tiles<'a, T> {
    /// Tiles of `array`, whose rows are `stride` long.
    ///
    /// # Panics
    /// If the columns overlap or do not fit in a row, or a block is empty.
    pub(super) fn new(array: &'a mut [T], stride: usize, row_block: usize, columns: Columns) -> Self {
        let c = &columns;
        assert!(row_block > 0 && c.width > 0 && c.groups > 0);
        assert!(c.groups == 1 || c.group <= c.stride, "column blocks overlap");
        assert!(c.at + (c.groups - 1) * c.stride + c.group <= stride, "columns exceed the row");
        let rows = array.len().checked_div(stride).unwrap_or(0);
        Tiles { ptr: array.as_mut_ptr(), rows, stride, row_block, columns, array: PhantomData }
    }

    /// Blocks of columns over all rows.
    pub(super) fn columns(array: &'a mut [T], stride: usize, columns: Columns) -> Self {
        let rows = array.len().checked_div(stride).unwrap_or(0).max(1);
        Tiles::new(array, stride, rows, columns)
    }

    /// Elements in all tiles.
    pub(super) fn len(&self) -> usize {
        self.rows * self.columns.groups * self.columns.group
    }

    fn row_blocks(&self) -> usize {
        self.rows.div_ceil(self.row_block)
    }
}

// SAFETY: `piece` gives row block `index % row_blocks` and column block `index / row_blocks`. Different
// indices differ in one of them; row blocks are disjoint, and so are column blocks because `new` checked
// that groups do not overlap.
unsafe impl<'a, T: Send> Split for Tiles<'a, T> {
    type Piece = Tile<'a, T>;

    fn count(&self) -> usize {
        self.row_blocks() * self.columns.count()
    }

    unsafe fn piece(&self, index: usize) -> Tile<'a, T> {
        let (block, row_block) = (index / self.row_blocks(), index % self.row_blocks());
        let row = row_block * self.row_block;
        let (group, start, width) = self.columns.block(block);
        let column = self.columns.at + group * self.columns.stride + start;
        // SAFETY: `row < rows`, and `column + width` is at most `stride` as `new` checked, so the offset is
        // within the array.
        let ptr = unsafe { self.ptr.add(row * self.stride + column) };
        let rows = self.row_block.min(self.rows - row);
        Tile { ptr, row, rows, stride: self.stride, group, start, width, array: PhantomData }
    }
}

/// One of [`Tiles`].
pub(super) struct Tile<'a, T> {
    ptr: *mut T,
    /// First row in the array.
    pub(super) row: usize,
    /// Number of rows.
    pub(super) rows: usize,
    stride: usize,
    /// Group of the columns.
    pub(super) group: usize,
    /// First column within its group.
    pub(super) start: usize,
    /// Number of columns.
    pub(super) width: usize,
    array: PhantomData<&'a mut [T]>,
}

// SAFETY: a `Tile` is an exclusive borrow of a part of the array.
unsafe impl<T: Send> Send for Tile<'_, T> {}
// SAFETY: as above; a shared `Tile` gives only shared access.
unsafe impl<T: Sync> Sync for Tile<'_, T> {}

impl<'a, T> Tile<'a, T> {
    /// All of `x`, in rows of `width`.
    ///
    /// # Panics
    /// If `x` is no whole number of rows.
    pub(super) fn over(x: &'a mut [T], width: usize) -> Self {
        assert!(width > 0 && x.len().is_multiple_of(width), "rows of {width} in {}", x.len());
        let rows = x.len() / width;
        Tile {
            ptr: x.as_mut_ptr(),
            row: 0,
            rows,
            stride: width,
            group: 0,
            start: 0,
            width,
            array: PhantomData,
        }
    }
}

impl<T> Tile<'_, T> {
    /// The tile's part of its row `row`, counted from the tile's first.
    #[inline(always)]
    pub(super) fn row_mut(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows);
        // SAFETY: the row is in the tile, no other tile has these elements, and the borrow of `self` keeps
        // this tile from giving them out twice.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(row * self.stride), self.width) }
    }

    /// Columns `column ..+ W` of `N` rows from `row`.
    ///
    /// # Panics
    /// If the tile does not have them.
    #[inline(always)]
    pub(super) fn rows_mut<const N: usize, const W: usize>(
        &mut self,
        row: usize,
        column: usize,
    ) -> [&mut [T; W]; N] {
        assert!(row + N <= self.rows && column + W <= self.width);
        // SAFETY: the rows are in the tile and do not overlap, no other tile has these elements, and the
        // borrow of `self` keeps this tile from giving them out twice.
        std::array::from_fn(|j| unsafe {
            &mut *self.ptr.add((row + j) * self.stride + column).cast::<[T; W]>()
        })
    }

    /// Copies row `from` to row `to`.
    #[inline(always)]
    pub(super) fn copy_row(&mut self, to: usize, from: usize)
    where
        T: Copy,
    {
        assert!(to < self.rows && from < self.rows);
        // SAFETY: both rows are in the tile, which has them to itself; `copy` allows for one and the same.
        unsafe {
            let from = self.ptr.add(from * self.stride);
            from.copy_to(self.ptr.add(to * self.stride), self.width);
        }
    }

    /// As [`row_mut`](Tile::row_mut), to read.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &[T] {
        assert!(row < self.rows);
        // SAFETY: as in `row_mut`, for shared access.
        unsafe { std::slice::from_raw_parts(self.ptr.add(row * self.stride), self.width) }
    }
}

/// Runs of `block` adjacent elements; the last may be shorter.
pub(super) struct Runs<'a, T> {
    ptr: *mut T,
    len: usize,
    block: usize,
    array: PhantomData<&'a mut [T]>,
}

// SAFETY: as for `Tiles`.
unsafe impl<T: Send> Sync for Runs<'_, T> {}

impl<'a, T> Runs<'a, T> {
    /// Runs of `block` elements of `array`.
    ///
    /// # Panics
    /// If `block` is 0.
    pub(super) fn new(array: &'a mut [T], block: usize) -> Self {
        assert!(block > 0);
        Runs { ptr: array.as_mut_ptr(), len: array.len(), block, array: PhantomData }
    }
}

// SAFETY: run `index` has elements `index * block ..+ block`.
unsafe impl<'a, T: Send> Split for Runs<'a, T> {
    type Piece = &'a mut [T];

    fn count(&self) -> usize {
        self.len.div_ceil(self.block)
    }

    unsafe fn piece(&self, index: usize) -> &'a mut [T] {
        let start = index * self.block;
        let len = self.block.min(self.len - start);
        // SAFETY: `start + len` is within the array, no other run has these elements, and the caller asks
        // for each run once.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}

// SAFETY: the only piece of nothing is nothing.
unsafe impl<P: Split> Split for Option<P> {
    type Piece = Option<P::Piece>;

    /// As many as the other parts have: [`usize::MAX`] when absent.
    fn count(&self) -> usize {
        self.as_ref().map_or(usize::MAX, Split::count)
    }

    unsafe fn piece(&self, index: usize) -> Option<P::Piece> {
        // SAFETY: passed on to the caller.
        self.as_ref().map(|p| unsafe { p.piece(index) })
    }
}

macro_rules! split_tuple {
    ($($name:ident $index:tt),+) => {
        // SAFETY: pieces of different numbers are disjoint because those of each member are, and the
        // members are borrows of different arrays.
        unsafe impl<$($name: Split),+> Split for ($($name,)+) {
            type Piece = ($($name::Piece,)+);

            /// # Panics
            /// If the members fall into different numbers of pieces.
            fn count(&self) -> usize {
                let counts = [$(self.$index.count()),+];
                let count = counts.into_iter().min().unwrap_or(0);
                assert!(counts.iter().all(|c| *c == count || *c == usize::MAX), "{counts:?} pieces");
                count
            }

            unsafe fn piece(&self, index: usize) -> Self::Piece {
                // SAFETY: passed on to the caller; `count` has checked that all members have this many.
                ($(unsafe { self.$index.piece(index) },)+)
            }
        }
    };
}

split_tuple!(A 0, B 1);
split_tuple!(A 0, B 1, C 2);
split_tuple!(A 0, B 1, C 2, D 3);
split_tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds 1 to every element of every piece and returns how often each element was reached.
    fn cover(len: usize, stride: usize, row_block: usize, columns: Columns) -> Vec<u32> {
        let mut array = vec![0; len];
        let tiles = Tiles::new(&mut array, stride, row_block, columns);
        for index in 0..tiles.count() {
            // SAFETY: each index once, and the piece is dropped within the turn.
            let mut tile = unsafe { tiles.piece(index) };
            for row in 0..tile.rows {
                tile.row_mut(row).iter_mut().for_each(|x| *x += 1);
            }
        }
        array
    }

    #[test]
    fn tiles_cover_every_element_once() {
        for (rows, cols) in [(1, 1), (5, 7), (16, 64), (3, 33)] {
            for row_block in [1, 2, 16] {
                for width in [1, 4, 100] {
                    let hits = cover(rows * cols, cols, row_block, Columns::all(cols, width));
                    assert!(hits.iter().all(|h| *h == 1), "{rows} {cols} {row_block} {width}");
                }
            }
        }
    }

    #[test]
    fn grouped_tiles_leave_the_columns_between_groups_alone() {
        let columns = Columns { at: 2, groups: 3, group: 3, stride: 5, width: 2 };
        let hits = cover(4 * 16, 16, 3, columns);
        for row in hits.chunks(16) {
            assert_eq!(row, [0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0, 0, 1, 1, 1, 0]);
        }
        assert_eq!((0..6).map(|b| columns.block(b).2).collect::<Vec<_>>(), [2, 1, 2, 1, 2, 1]);
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_groups_are_refused() {
        Tiles::new(&mut [0u8; 8], 8, 1, Columns { at: 0, groups: 2, group: 4, stride: 3, width: 4 });
    }

    #[test]
    #[should_panic(expected = "exceed")]
    fn columns_beyond_the_row_are_refused() {
        Tiles::new(&mut [0u8; 8], 4, 1, Columns::all(5, 2));
    }

    #[test]
    #[should_panic(expected = "pieces")]
    fn parts_of_different_counts_are_refused() {
        let (mut a, mut b) = ([0u8; 8], [0u8; 8]);
        (Runs::new(&mut a, 4), Runs::new(&mut b, 2)).count();
    }
}
