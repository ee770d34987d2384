// SPDX-License-Identifier: Apache-2.0 OR MIT
//! virtio-console (virtio 1.2, section 5.3), as two kinds of device: a console on our standard input and output, and ports, each
//! with a Unix socket of the host.
//!
//! - [`options`]: what the command line says of ports.
//! - [`backend`]: the host's ends.
//! - [`request`]: bytes and control messages in the guest's buffers.
//! - here: the devices, and the thread that serves all queues of one.
//!
//! The console is a device of its own, so that its size is in the configuration. In a device with several ports it would be told
//! by a control message, whose two numbers have another order in Linux than in the specification.

pub mod backend;
pub mod options;
pub mod request;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use rustix::event::PollFd;
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::worker::{Serve, Worker};
use super::{Activation, Interrupt, RING_FEATURES, VirtioDevice, read_bytes};
use crate::terminal;
use backend::{Slot, Taken};
use request::{Event, Message};

/// The size is in the configuration.
const VIRTIO_CONSOLE_F_SIZE: u32 = 0;
/// Several ports, and control queues.
const VIRTIO_CONSOLE_F_MULTIPORT: u32 = 1;

const QUEUE_SIZE: u16 = 64;
/// Control queues, by number: from device to driver, from driver to device.
const CONTROL_IN: u16 = 2;
const CONTROL_OUT: u16 = 3;
/// Control messages that wait for the driver's buffers; it gets no answers to more.
const BACKLOG: usize = 64;
/// Most ports of a device.
pub const PORTS_MAX: usize = 16;

/// A console, or ports, as a virtio device.
pub struct Console {
    ports: Vec<Port>,
    multiport: bool,
    queue_sizes: Vec<u16>,
    worker: Option<Worker>,
}

/// A port: its name, and the host's end.
#[derive(Clone)]
pub struct Port {
    /// Its name in the guest.
    pub name: String,
    /// The host's end.
    pub end: Slot,
}

impl Console {
    /// A console.
    pub fn terminal(end: Slot) -> Self {
        let ports = vec![Port { name: String::new(), end }];
        Self { ports, multiport: false, queue_sizes: vec![QUEUE_SIZE; 2], worker: None }
    }

    /// Ports, at most [`PORTS_MAX`].
    pub fn ports(ports: Vec<Port>) -> Self {
        // Control queues have the place of a second port's.
        let queues = 2 * (ports.len() + 1);
        Self { ports, multiport: true, queue_sizes: vec![QUEUE_SIZE; queues], worker: None }
    }
}

impl VirtioDevice for Console {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        RING_FEATURES
            | if self.multiport { 1 << VIRTIO_CONSOLE_F_MULTIPORT } else { 1 << VIRTIO_CONSOLE_F_SIZE }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // cols, rows, max_nr_ports.
        let (columns, rows) = if self.multiport { (0, 0) } else { terminal::size() };
        let ports = u32::try_from(self.ports.len()).unwrap_or(0);
        let config = [&columns.to_le_bytes()[..], &rows.to_le_bytes(), &ports.to_le_bytes()].concat();
        read_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.reset();
        let Activation { memory, features, interrupt, queues } = activation;
        let control = features >> VIRTIO_CONSOLE_F_MULTIPORT & 1 != 0;
        let mut server = Server {
            memory,
            interrupt: interrupt.clone(),
            lanes: Vec::with_capacity(self.ports.len()),
            control: None,
        };
        for port in &self.ports {
            let end = port.end.take().ok_or_else(|| io::Error::other("a port is in use"))?;
            server.lanes.push(Lane::new(port.name.clone(), end, !control));
        }
        let (mut control_in, mut control_out) = (None, None);
        let mut notifications = Vec::with_capacity(queues.len());
        for ready in queues {
            match ready.index {
                CONTROL_IN if control => control_in = Some(ready.queue),
                CONTROL_OUT if control => control_out = Some(ready.queue),
                index => {
                    // Port 0 has the queues before the control queues, the others those behind.
                    let lane = usize::from(if index < CONTROL_IN { 0 } else { index / 2 - 1 });
                    let Some(lane) = server.lanes.get_mut(lane) else { continue };
                    *(if index % 2 == 0 { &mut lane.receive } else { &mut lane.transmit }) =
                        Some(ready.queue);
                }
            }
            notifications.push(ready.notify);
        }
        if let (Some(to_driver), Some(from_driver)) = (control_in, control_out) {
            server.control = Some(Control { to_driver, from_driver, backlog: VecDeque::new() });
        }
        let tell = (!self.multiport).then(|| interrupt.clone());
        self.worker = Some(Worker::start("console", notifications, interrupt, server)?);
        if let Some(interrupt) = tell {
            // Linux reads the size only when it hears that it has changed.
            interrupt.config_change();
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

/// What the thread works on.
struct Server {
    memory: GuestMemoryMmap,
    interrupt: Arc<Interrupt>,
    lanes: Vec<Lane>,
    control: Option<Control>,
}

/// A port in use.
struct Lane {
    name: String,
    end: Taken,
    receive: Option<Queue>,
    transmit: Option<Queue>,
    /// A program of the guest's has it open.
    open: bool,
    /// The driver knows that somebody is at the host's end.
    told: bool,
    /// The driver has no buffers left.
    starved: bool,
    /// What the host's end has no room for.
    output: VecDeque<u8>,
}

/// The control queues.
struct Control {
    to_driver: Queue,
    from_driver: Queue,
    /// Messages that wait for buffers.
    backlog: VecDeque<Vec<u8>>,
}

impl Lane {
    fn new(name: String, end: Taken, open: bool) -> Self {
        let output = VecDeque::new();
        Self { name, end, receive: None, transmit: None, open, told: false, starved: false, output }
    }

    /// From the host to the guest.
    fn receive(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Error> {
        let Self { end, receive: Some(queue), open: true, starved, .. } = self else { return Ok(false) };
        let mut used = false;
        loop {
            let start = queue.next_avail();
            let Some(chain) = queue.iter(memory)?.next() else {
                *starved = !queue.enable_notification(memory)?;
                if *starved {
                    break;
                }
                continue;
            };
            *starved = false;
            let head = chain.head_index();
            let Some(len) = request::input(memory, chain, |bytes| end.receive(bytes)) else {
                queue.set_next_avail(start);
                break;
            };
            queue.add_used(memory, head, len)?;
            used = true;
        }
        Ok(used && queue.needs_notification(memory)?)
    }

    /// From the guest to the host.
    fn transmit(&mut self, memory: &GuestMemoryMmap) -> Result<bool, Error> {
        let Self { end, transmit: Some(queue), output, .. } = self else { return Ok(false) };
        let mut used = false;
        loop {
            while !output.is_empty() {
                let (first, _) = output.as_slices();
                match end.send(first) {
                    0 => return Ok(used && queue.needs_notification(memory)?),
                    count => drop(output.drain(..count)),
                }
            }
            let Some(chain) = queue.iter(memory)?.next() else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                return Ok(used && queue.needs_notification(memory)?);
            };
            let head = chain.head_index();
            output.extend(request::output(memory, chain));
            queue.add_used(memory, head, 0)?;
            used = true;
        }
    }
}

impl Server {
    /// Takes the driver's messages, and sends ours.
    fn control(&mut self) -> Result<(), Error> {
        let Self { memory, interrupt, lanes, control: Some(control) } = self else { return Ok(()) };
        let Control { to_driver, from_driver, backlog } = control;
        let mut notify = false;
        loop {
            while let Some(message) = backlog.front() {
                let Some(chain) = to_driver.iter(&*memory)?.next() else {
                    if to_driver.enable_notification(memory)? {
                        continue;
                    }
                    break;
                };
                let head = chain.head_index();
                let len = request::input(memory, chain, |room| {
                    let count = room.len().min(message.len());
                    room.iter_mut().zip(message).for_each(|(to, from)| *to = *from);
                    Some(count)
                });
                to_driver.add_used(memory, head, len.unwrap_or(0))?;
                notify |= to_driver.needs_notification(memory)?;
                backlog.pop_front();
            }
            if backlog.len() >= BACKLOG {
                break;
            }
            let Some(chain) = from_driver.iter(&*memory)?.next() else {
                if from_driver.enable_notification(memory)? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            match Message::read(memory, chain) {
                Some(message) => answer(lanes, message, backlog),
                None => tracing::debug!("virtio-console: no control message"),
            }
            from_driver.add_used(memory, head, 0)?;
            notify |= from_driver.needs_notification(memory)?;
        }
        if notify {
            interrupt.used_buffer();
        }
        Ok(())
    }

    /// Looks who is at the host's ends.
    fn look(&mut self) {
        for (port, lane) in (0..).zip(&mut self.lanes) {
            if lane.end.resized() {
                self.interrupt.config_change();
            }
            let connected = lane.end.connected();
            if let Some(control) = &mut self.control
                && connected != lane.told
                && control.backlog.len() < BACKLOG
            {
                lane.told = connected;
                control.backlog.push_back(Message::bytes(port, Event::PortOpen, connected.into(), &[]));
            }
        }
    }
}

/// What a message of the driver's comes to.
fn answer(lanes: &mut [Lane], message: Message, backlog: &mut VecDeque<Vec<u8>>) {
    const DEVICE_READY: u16 = Event::DeviceReady as u16;
    const PORT_READY: u16 = Event::PortReady as u16;
    const PORT_OPEN: u16 = Event::PortOpen as u16;
    let port = message.port;
    let lane = usize::try_from(port).ok().and_then(|port| lanes.get_mut(port));
    match (message.event, message.value, lane) {
        (DEVICE_READY, 1, _) => {
            for port in (0..).take(lanes.len()) {
                backlog.push_back(Message::bytes(port, Event::PortAdd, 1, &[]));
            }
        }
        (PORT_READY, 1, Some(lane)) => {
            backlog.push_back(Message::bytes(port, Event::PortName, 1, lane.name.as_bytes()));
            // The driver hears so even if nobody is there, and of each change since.
            backlog.push_back(Message::bytes(port, Event::PortOpen, lane.told.into(), &[]));
        }
        (PORT_OPEN, value, Some(lane)) => lane.open = value != 0,
        _ => tracing::debug!("virtio-console: {message:?} means nothing"),
    }
}

impl Serve for Server {
    fn serve(&mut self) -> Result<(), Error> {
        self.look();
        self.control()?;
        let mut notify = false;
        for lane in &mut self.lanes {
            notify |= lane.transmit(&self.memory)?;
            notify |= lane.receive(&self.memory)?;
        }
        if notify {
            self.interrupt.used_buffer();
        }
        // A program that has just gone is news for the driver.
        self.look();
        self.control()
    }

    fn sources(&self) -> Vec<PollFd<'_>> {
        let sources = |lane: &'_ Lane| {
            let input = lane.open && !lane.starved && lane.receive.is_some();
            (input, !lane.output.is_empty())
        };
        self.lanes
            .iter()
            .flat_map(|lane| {
                let (input, output) = sources(lane);
                lane.end.sources(input, output)
            })
            .collect()
    }
}
