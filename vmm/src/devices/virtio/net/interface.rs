// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a driver sees of a network interface, whoever serves its queues: features, configuration, and which queue is which.
//!
//! ```text
//!  0 receive  1 transmit  2 receive  3 transmit  ...  2n control      (n pairs, of which the driver uses as many as it sets)
//!  0 receive  1 transmit  2 control                                   (a driver that did not accept VIRTIO_NET_F_MQ)
//!  0 receive  1 transmit                                              (one pair: there is no control queue)
//! ```

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use super::options::Mac;
use crate::devices::virtio::{ReadyQueue, read_bytes};

const QUEUE_SIZE: u16 = 256;
const CONTROL_SIZE: u16 = 64;

/// An interface.
pub struct Interface {
    mac: Mac,
    /// Pairs of queues; a driver need not use all.
    pairs: u16,
    sizes: Vec<u16>,
}

impl Interface {
    /// One with this address, and so many pairs of queues.
    pub fn new(mac: Mac, pairs: usize) -> Self {
        let mut sizes = vec![QUEUE_SIZE; 2 * pairs];
        if pairs > 1 {
            sizes.push(CONTROL_SIZE);
        }
        Self { mac, pairs: u16::try_from(pairs).unwrap_or(u16::MAX), sizes }
    }

    /// Features that need nothing of a back end.
    pub fn features(&self) -> u64 {
        let several = 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
        1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS | if self.pairs > 1 { several } else { 0 }
    }

    /// Largest size of each queue.
    pub fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    /// Reads the configuration: mac, status, max_virtqueue_pairs (if there are several).
    pub fn read_config(&self, link: bool, offset: u64, data: &mut [u8]) {
        let status = if link { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
        let mut config = [&self.mac.bytes()[..], &status.to_le_bytes()].concat();
        if self.pairs > 1 {
            config.extend(self.pairs.to_le_bytes());
        }
        read_bytes(&config, offset, data);
    }

    /// The queues of a driver that accepted `features`, by pairs, and the control queue. Pairs behind one that the driver has not set up
    /// can't be used.
    pub fn sort(&self, queues: Vec<ReadyQueue>, features: u64) -> (Vec<Vec<ReadyQueue>>, Option<ReadyQueue>) {
        let accepted = |feature: u32| features >> feature & 1 != 0;
        let pairs = if accepted(VIRTIO_NET_F_MQ) { self.pairs } else { 1 };
        let mut sorted: Vec<Vec<ReadyQueue>> = (0..pairs).map(|_| Vec::with_capacity(2)).collect();
        let mut control = None;
        for ready in queues {
            if let Some(pair) = sorted.get_mut(usize::from(ready.index / 2)) {
                pair.push(ready);
            } else if ready.index == 2 * pairs && accepted(VIRTIO_NET_F_CTRL_VQ) {
                control = Some(ready);
            }
        }
        let whole = sorted.iter().skip(1).take_while(|pair| pair.len() == 2).count();
        sorted.truncate(1 + whole);
        (sorted, control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use virtio_queue::{Queue, QueueT};
    use vmm_sys_util::eventfd::EventFd;

    fn interface(pairs: usize) -> Interface {
        Interface::new("02:00:00:00:00:01".parse().unwrap(), pairs)
    }

    #[test]
    fn one_pair_has_no_control_queue() {
        let interface = interface(1);
        assert_eq!(interface.features(), 1 << 5 | 1 << 16);
        assert_eq!(interface.queue_sizes(), [256; 2]);
        let mut config = [9; 12];
        interface.read_config(true, 0, &mut config);
        assert_eq!(config, [2, 0, 0, 0, 0, 1, 1, 0, 9, 9, 9, 9]);
    }

    #[test]
    fn several_pairs_have_one() {
        let interface = interface(3);
        assert_eq!(interface.features(), 1 << 5 | 1 << 16 | 1 << 17 | 1 << 22);
        assert_eq!(interface.queue_sizes(), [256, 256, 256, 256, 256, 256, 64]);
        let mut config = [9; 12];
        interface.read_config(false, 0, &mut config);
        assert_eq!(config, [2, 0, 0, 0, 0, 1, 0, 0, 3, 0, 9, 9]);
    }

    /// How queues with these numbers are sorted.
    fn sorted(numbers: &[u16], features: u64) -> (Vec<Vec<u16>>, Option<u16>) {
        let queue = |&index: &u16| ReadyQueue {
            index,
            queue: Queue::new(16).unwrap(),
            notify: Arc::new(EventFd::new(0).unwrap()),
        };
        let (pairs, control) = interface(3).sort(numbers.iter().map(queue).collect(), features);
        let number = |ready: ReadyQueue| ready.index;
        (pairs.into_iter().map(|pair| pair.into_iter().map(number).collect()).collect(), control.map(number))
    }

    #[test]
    fn the_control_queue_is_where_the_features_put_it() {
        let (control, several) = (1 << VIRTIO_NET_F_CTRL_VQ, 1 << VIRTIO_NET_F_MQ);
        let all = [0, 1, 2, 3, 4, 5, 6];
        assert_eq!(sorted(&all, control | several), (vec![vec![0, 1], vec![2, 3], vec![4, 5]], Some(6)));
        assert_eq!(sorted(&all, several).1, None);
        assert_eq!(sorted(&all, control), (vec![vec![0, 1]], Some(2)));
        assert_eq!(sorted(&all, 0), (vec![vec![0, 1]], None));
        // What is missing.
        assert_eq!(sorted(&[0, 1, 2, 4, 5, 6], control | several), (vec![vec![0, 1]], Some(6)));
        assert_eq!(sorted(&[1, 2, 3, 6], control | several), (vec![vec![1], vec![2, 3]], Some(6)));
        assert_eq!(sorted(&[], control | several), (vec![vec![]], None));
    }
}
