//! Where the elements of a [`Buf`](crate::Buf) in host memory lie.
//!
//! Small memory comes from the allocator. Memory of 2 MiB or more is mapped, aligned to huge pages, and the
//! system is asked for them: a product reads a matrix of 100 MB in one go, and with pages of 4 KiB the
//! processor would look up 27,000 addresses for it. A file can be used in place, as read-only memory.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use memmap2::{Mmap, MmapMut};

/// Size and alignment of a huge page.
pub(crate) const HUGE: usize = 2 << 20;

/// One cache line; gives host memory its alignment without unsafe code.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Alignment of all host memory.
const ALIGN: usize = size_of::<Line>();

/// Host memory of a fixed size.
pub(crate) struct Mem {
    home: Home,
    /// First byte within its home.
    at: usize,
    len: usize,
}

enum Home {
    Heap(Vec<Line>),
    Pages(MmapMut),
    File(Arc<Mmap>),
}

impl Mem {
    /// `len` bytes of zeros. Untouched pages cost no memory until they are written.
    pub(crate) fn zeroed(len: usize) -> Mem {
        Mem::of_pages(len, len / HUGE * HUGE)
    }

    /// The same for memory that is read whole again and again: more of it lies in huge pages, and up to a quarter more of it is
    /// taken for that.
    pub(crate) fn zeroed_to_read(len: usize) -> Mem {
        let (whole, up) = (len / HUGE * HUGE, len.next_multiple_of(HUGE));
        // Of a large matrix the part outside of whole pages is too small to be worth one.
        let pays = len - whole >= len / 64 && up - len <= len / 4;
        Mem::of_pages(len, if pays { up } else { whole })
    }

    /// The first `huge` bytes in huge pages.
    fn of_pages(len: usize, huge: usize) -> Mem {
        match pages(huge, len) {
            Some((map, at)) => Mem { home: Home::Pages(map), at, len },
            None => Mem { home: Home::Heap(bytemuck::zeroed_vec(len.div_ceil(ALIGN))), at: 0, len },
        }
    }

    /// Bytes `at ..+ len` of a file, in place; none if they are not aligned as memory must be, or beyond the
    /// end.
    pub(crate) fn of_file(file: &FileMap, at: usize, len: usize) -> Option<Mem> {
        let fits = at.checked_add(len).is_some_and(|end| end <= file.0.len());
        // All pages at once: that costs a fiftieth of finding them missing one after the other. A system that
        // cannot do it lets them be found.
        #[cfg(target_os = "linux")]
        if fits && at.is_multiple_of(ALIGN) {
            let _ = file.0.advise_range(memmap2::Advice::PopulateRead, at, len);
        }
        // The map itself begins at a page.
        (fits && at.is_multiple_of(ALIGN)).then(|| Mem { home: Home::File(file.0.clone()), at, len })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        let all = match &self.home {
            Home::Heap(lines) => bytemuck::cast_slice(lines),
            Home::Pages(map) => &map[..],
            Home::File(map) => &map[..],
        };
        &all[self.at..][..self.len]
    }

    /// The bytes, to be written.
    ///
    /// # Panics
    /// If they are a file's.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let all = match &mut self.home {
            Home::Heap(lines) => bytemuck::cast_slice_mut(lines),
            Home::Pages(map) => &mut map[..],
            Home::File(_) => panic!("memory that is a file's is read-only"),
        };
        &mut all[self.at..][..self.len]
    }

    /// Whether the bytes are a file's, and so cannot be written.
    pub(crate) fn is_file(&self) -> bool {
        matches!(self.home, Home::File(_))
    }
}

/// A fresh map with room for `len` bytes at a multiple of [`HUGE`], of which the first `huge` are to lie in huge pages, and
/// where that is; none if no page is to be huge, or if the system refuses, so that the allocator gets its say.
fn pages(huge: usize, len: usize) -> Option<(MmapMut, usize)> {
    if huge == 0 {
        return None;
    }
    let map = MmapMut::map_anon(len.max(huge).checked_add(HUGE)?).ok()?;
    let at = map.as_ptr().align_offset(HUGE);
    // Without huge pages in the kernel the advice fails and small ones serve.
    #[cfg(target_os = "linux")]
    let _ = map.advise_range(memmap2::Advice::HugePage, at, huge);
    Some((map, at))
}

/// A file as read-only memory.
///
/// The system reads its pages when they are first used and may drop them again when memory is short. **If
/// another process makes the file shorter while it is mapped, reading beyond its new end kills this process
/// (`SIGBUS`)**, and if the file is written to, what is computed from it changes. Only map files that nobody
/// else writes.
#[derive(Clone, Debug)]
pub struct FileMap(Arc<Mmap>);

impl FileMap {
    /// Maps the whole of `file`.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(file: &File) -> io::Result<FileMap> {
        // SAFETY: the map is only read, and as plain numbers, of which every pattern of bits is one. What is
        // asked of the caller in words, that nobody writes to the file or cuts it short, this program cannot
        // check; that is why reading files in place has to be chosen by whoever starts it.
        let map = unsafe { Mmap::map(file) }?;
        Ok(FileMap(Arc::new(map)))
    }

    /// Bytes of the file when it was mapped.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the file had no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes of the file.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "millions of bytes")]
    fn memory_of_every_size_is_aligned_zeroed_and_writable() {
        for len in [0, 1, 63, 64, 4096, HUGE - 1, HUGE, HUGE + 1, 3 * HUGE + 5000] {
            let mut mem = Mem::zeroed(len);
            assert!(mem.bytes().iter().all(|b| *b == 0), "{len}");
            let aligned = if len < HUGE { ALIGN } else { HUGE };
            assert!(len == 0 || mem.bytes().as_ptr().addr().is_multiple_of(aligned), "{len}");
            mem.bytes_mut().fill(7);
            assert_eq!((mem.bytes().len(), mem.bytes().iter().all(|b| *b == 7)), (len, true));
            assert!(!mem.is_file());
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "asks for huge pages")]
    fn memory_to_be_read_takes_a_page_more_where_that_pays() {
        let huge = |len: usize| match Mem::zeroed_to_read(len).home {
            Home::Pages(map) => map.len() - HUGE,
            _ => 0,
        };
        if pages(HUGE, HUGE).is_none() {
            return;
        }
        // A page more for most of a page, none for a little of one, nor for a small part of what is large.
        for (len, room) in [
            (HUGE / 2, 0),
            (HUGE - HUGE / 8, HUGE),
            (HUGE + HUGE / 2, HUGE + HUGE / 2),
            (HUGE + 7 * HUGE / 8, 2 * HUGE),
            (100 * HUGE + HUGE / 2, 100 * HUGE + HUGE / 2),
            (30 * HUGE + HUGE / 2, 31 * HUGE),
        ] {
            assert_eq!(huge(len), room, "{len}");
            let mut mem = Mem::zeroed_to_read(len);
            assert_eq!(mem.bytes().len(), len);
            mem.bytes_mut()[len - 1] = 1;
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "asks for more memory than there is")]
    fn pages_that_are_never_touched_cost_nothing() {
        // More than any machine has.
        let Some((map, at)) = pages(1 << 42, 1 << 42) else { return };
        assert_eq!(map[at + (1 << 41)], 0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps a file")]
    fn a_file_is_used_in_place_where_it_is_aligned() {
        let path = std::env::temp_dir().join(format!("zamba-mem-{}", std::process::id()));
        let mut file = File::create_new(&path).unwrap();
        file.write_all(&[1; 64]).unwrap();
        file.write_all(&[2; 100]).unwrap();
        let map = FileMap::new(&File::open(&path).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((map.len(), map.is_empty()), (164, false));
        let mem = Mem::of_file(&map, 64, 100).unwrap();
        assert!(mem.is_file() && mem.bytes() == [2; 100]);
        assert!(Mem::of_file(&map, 2, 64).is_none(), "not aligned");
        assert!(Mem::of_file(&map, 64, 101).is_none(), "beyond the end");
        assert!(Mem::of_file(&map, 64, usize::MAX).is_none(), "beyond all ends");
    }

    #[test]
    #[cfg_attr(miri, ignore = "maps a file")]
    #[should_panic(expected = "read-only")]
    fn a_file_is_not_written() {
        let map = FileMap::new(&File::open(std::env::current_exe().unwrap()).unwrap()).unwrap();
        Mem::of_file(&map, 0, 64).unwrap().bytes_mut();
    }
}
