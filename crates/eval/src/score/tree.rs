//! What items have in common, as a tree of parts.

use super::Item;

/// A beginning that is shared by several items is kept only if it is at least this many tokens longer than what
/// is kept already: a state is copied for each item that goes on from it, which costs as much as some tokens.
const WORTH: usize = 16;

/// A part of one or more items.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) parent: Option<usize>,
    /// Its place in the items that it belongs to, `start .. end`; `item` is one of these.
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) item: usize,
    pub(super) children: Vec<usize>,
    /// Levels of nodes below it that have children, itself included.
    pub(super) height: usize,
    /// What to score: place of the token before it, the token, the item. In order.
    pub(super) wants: Vec<(usize, u32, usize)>,
}

/// Parts of items. Items that are equal but for their last token share all their parts.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(super) nodes: Vec<Node>,
    pub(super) roots: Vec<usize>,
}

impl Tree {
    /// The tree of `items`. Common beginnings are shared on at most so many `levels`; without, only whole
    /// items are.
    pub(crate) fn new(items: &[Item], levels: Option<usize>) -> Self {
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by(|a, b| items[*a].inputs().cmp(items[*b].inputs()).then(a.cmp(b)));
        let mut tree = Tree::default();
        let mut builder = Builder { items, tree: &mut tree, ends: vec![0; items.len()] };
        builder.build(&order, None, 0, 0, levels.unwrap_or(0));
        let ends = builder.ends;
        for (i, item) in items.iter().enumerate() {
            tree.place(i, item, ends[i]);
        }
        for node in &mut tree.nodes {
            node.wants.sort_unstable();
        }
        tree
    }

    /// Tokens that go through the model.
    pub(crate) fn tokens(&self) -> u64 {
        self.nodes.iter().map(|n| (n.end - n.start) as u64).sum()
    }

    /// Hands what is to be scored of an item that ends in node `at` to the nodes that see it.
    fn place(&mut self, index: usize, item: &Item, mut at: usize) {
        let inputs = item.inputs().len();
        let mut row = inputs;
        while row > inputs - item.scored {
            row -= 1;
            while row < self.nodes[at].start {
                at = self.nodes[at].parent.expect("the first node of an item begins at its first token");
            }
            self.nodes[at].wants.push((row, item.tokens[row + 1], index));
        }
    }
}

struct Builder<'i, 't> {
    items: &'i [Item],
    tree: &'t mut Tree,
    /// The node in which each item ends.
    ends: Vec<usize>,
}

impl Builder<'_, '_> {
    fn inputs(&self, item: usize) -> &[u32] {
        self.items[item].inputs()
    }

    /// Adds nodes for sorted items whose first `known` tokens are equal and of which the first `start` are in
    /// `parent`. Returns the height of the highest.
    fn build(
        &mut self,
        order: &[usize],
        parent: Option<usize>,
        start: usize,
        known: usize,
        levels: usize,
    ) -> usize {
        let [first, .., last] = *order else {
            if let [only] = *order {
                self.leaf(&[only], parent, start);
            }
            return 0;
        };
        let (a, b) = (self.inputs(first), self.inputs(last));
        let common = known + a[known..].iter().zip(&b[known..]).take_while(|(a, b)| a == b).count();
        if common == b.len() {
            // All are equal.
            self.leaf(order, parent, start);
            return 0;
        }
        if levels > 0 && common - start >= WORTH {
            let node = self.node(first, parent, start, common);
            let ended = order.iter().take_while(|i| self.inputs(**i).len() == common).count();
            for item in &order[..ended] {
                self.ends[*item] = node;
            }
            let below = self.split(&order[ended..], Some(node), common, common, levels - 1);
            self.tree.nodes[node].height = 1 + below;
            return 1 + below;
        }
        self.split(order, parent, start, common, levels)
    }

    /// Builds each group of items that go on with the same token after the first `common`.
    fn split(
        &mut self,
        order: &[usize],
        parent: Option<usize>,
        start: usize,
        common: usize,
        levels: usize,
    ) -> usize {
        let mut rest = order;
        let mut highest = 0;
        while let Some(first) = rest.first() {
            let next = self.inputs(*first).get(common).copied();
            let group = rest.iter().take_while(|i| self.inputs(**i).get(common).copied() == next).count();
            let (these, others) = rest.split_at(group);
            rest = others;
            let known = if next.is_some() { common + 1 } else { common };
            highest = highest.max(self.build(these, parent, start, known, levels));
        }
        highest
    }

    fn leaf(&mut self, items: &[usize], parent: Option<usize>, start: usize) {
        let end = self.inputs(items[0]).len();
        let node = self.node(items[0], parent, start, end);
        for item in items {
            self.ends[*item] = node;
        }
    }

    fn node(&mut self, item: usize, parent: Option<usize>, start: usize, end: usize) -> usize {
        let id = self.tree.nodes.len();
        let (children, wants) = (vec![], vec![]);
        self.tree.nodes.push(Node { parent, start, end, item, children, height: 0, wants });
        match parent {
            Some(parent) => self.tree.nodes[parent].children.push(id),
            None => self.tree.roots.push(id),
        }
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(shared: u32, own: &[u32], scored: usize) -> Item {
        let mut tokens: Vec<u32> = (0..shared).collect();
        tokens.extend(own);
        Item { tokens, scored }
    }

    #[test]
    fn what_is_common_stands_once_and_what_is_scored_stands_where_it_is_seen() {
        let items = [
            item(40, &[50, 51, 52], 3),
            item(40, &[50, 61, 9], 2),
            item(40, &[50], 1),
            item(40, &[50, 7, 7], 1),
        ];
        let tree = Tree::new(&items, Some(4));
        // 41 tokens are common to those that go on; the third one ends with the 40th.
        let parts: Vec<_> = tree.nodes.iter().map(|n| (n.parent, n.start, n.end, n.height)).collect();
        assert_eq!(parts[0], (None, 0, 40, 1));
        assert_eq!(tree.nodes[0].wants, [(39, 50, 0), (39, 50, 2)]);
        assert_eq!(tree.tokens(), 40 + 3 * 2);
        assert_eq!(tree.nodes.iter().map(|n| n.wants.len()).sum::<usize>(), 7);
        let plain = Tree::new(&items, None);
        assert_eq!(plain.tokens(), 42 * 3 + 40);
        assert_eq!(Tree::new(&[], Some(4)).tokens(), 0);
    }

    #[test]
    fn short_beginnings_are_not_shared_and_levels_are_counted() {
        let items = [item(10, &[50, 1], 1), item(10, &[51, 1], 1)];
        assert_eq!(Tree::new(&items, Some(4)).tokens(), 22);
        let chain: Vec<Item> = (1..8).map(|i| item(20 * i, &[90, 91 + i], 1)).collect();
        let heights: Vec<usize> = [1, 2, 4]
            .iter()
            .map(|l| {
                let tree = Tree::new(&chain, Some(*l));
                tree.nodes.iter().map(|n| n.height).max().unwrap()
            })
            .collect();
        assert_eq!(heights, [1, 2, 4]);
    }
}
