// SPDX-License-Identifier: GPL-2.0-only
/*
 * For a stock Linux kernel in a VM that has channels (RPC): each of the places that the device tree
 * names is a file, /dev/gzvm-rpc/NAME, further ones of the same name NAME.1, NAME.2 and so on.
 *
 * What is read and written is in the form of the host's channels, so programs of a host work here,
 * too. A file is the VM's end of whatever channel is there, from the moment there is one until its
 * peer goes; then it is at its end, and has to be opened anew. One program has it at a time. When
 * that closes the file, its calls are cancelled, and the channel stays for the next: the host has
 * made it for this VM.
 *
 * All channels share a doorbell, which says no more than that there is something new somewhere: all
 * who wait look then. To look at a channel is to receive, so a file has room for one message that
 * poll() has found and read() has not taken yet.
 */

#include <linux/fs.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/uaccess.h>
#include <linux/version.h>
#include <linux/wait.h>

#include "rpc.h"

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
#define timer_delete_sync del_timer_sync
#endif

/* The hypervisor's calls: docs/abi.md, "RPC". */
#define RPC_OPEN	0xC600F011
#define RPC_CALL	0xC600F013
#define RPC_NOTICE	0xC600F014
#define RPC_REPLY	0xC600F015
#define RPC_RECEIVE	0xC600F016
#define RPC_CANCEL	0xC600F017
#define RPC_CLOSE	0xC600F018
#define RPC_CALL_WITH	0xC600F019

/* Kinds of messages. */
#define KIND_CALL	1
#define KIND_REPLY	2
#define KIND_NOTICE	3
#define KIND_LAPSED	4

/* In front of a call's message, with what goes along. */
struct call_with {
	u64 from;
	u64 bytes;
	struct head head;
};
static_assert(sizeof(struct call_with) == 88);

#define IOCTL_CALL	_IOWR(0x92, 0xDA, struct head)
#define IOCTL_CANCEL	_IOW(0x92, 0xDB, u64)
#define IOCTL_PEER	_IOR(0x92, 0xDC, struct head)
#define IOCTL_CALL_WITH	_IOWR(0x92, 0xDD, struct call_with)

/* Those who wait for anything, and how often they were woken. */
static DECLARE_WAIT_QUEUE_HEAD(bell);
static atomic_t rings = ATOMIC_INIT(0);

static void ring(void)
{
	atomic_inc(&rings);
	wake_up_interruptible_all(&bell);
}

irqreturn_t rpc_rung(int number, void *data)
{
	ring();
	return IRQ_HANDLED;
}

void rpc_due(struct timer_list *timer)
{
	ring();
}

int rpc_hvc(struct arm_smccc_1_2_regs *x)
{
	struct arm_smccc_1_2_regs args = *x;

	arm_smccc_1_2_hvc(&args, x);
	switch ((long)x->a0) {
	case 0:
		return 0;
	case -3:
		return -EINVAL;
	case -4:
		return -ENOMEM;
	case -5:
		return -EAGAIN;
	case -6:
		return -EPIPE;
	case -7:
		return -ENOENT;
	default:
		return -EOPNOTSUPP;
	}
}

int rpc_call(u32 function, u64 x1, u64 x2, u64 x3, u64 x4, struct arm_smccc_1_2_regs *x)
{
	*x = (struct arm_smccc_1_2_regs) { .a0 = function, .a1 = x1, .a2 = x2, .a3 = x3, .a4 = x4 };
	return rpc_hvc(x);
}

/* It is over, as the hypervisor sees it. */
static void over(struct pending *call)
{
	call->token = 0;
	rpc_take_back(&call->lent);
}

/* The channel has gone, and the file is at its end. */
static int end_of(struct place *place)
{
	struct arm_smccc_1_2_regs x;
	int i;

	if (place->handle)
		rpc_call(RPC_CLOSE, place->handle, 0, 0, 0, &x);
	for (i = 0; i < SLOTS; i++)
		over(&place->pending[i]);
	place->handle = 0;
	place->over = true;
	return -EPIPE;
}

static int connect(struct place *place)
{
	struct arm_smccc_1_2_regs x;
	int ret;

	if (place->over)
		return -EPIPE;
	if (place->handle)
		return 0;
	ret = rpc_call(RPC_OPEN, place->port, 0, 0, 0, &x);
	if (ret)
		return ret == -EINVAL ? -ENOTCONN : ret;
	place->handle = x.a1;
	return 0;
}

/* Has the timer ring for the first of the calls that lapse. */
static void arm(struct place *place)
{
	unsigned long first = 0;
	bool any = false;
	int i;

	for (i = 0; i < SLOTS; i++) {
		struct pending *call = &place->pending[i];

		if (!call->token || !call->lapses || (any && time_after(call->due, first)))
			continue;
		first = call->due;
		any = true;
	}
	if (!any)
		return;
	/* The hypervisor's clock may be a little behind. */
	if (time_before_eq(first, jiffies))
		first = jiffies + 1;
	mod_timer(&place->timer, first);
}

/* A new call; there are no more than SLOTS under way. Microseconds, 0 for never. */
static void note(struct place *place, u64 token, u64 time, const struct lent *lent)
{
	u64 ms = min_t(u64, div_u64(time, USEC_PER_MSEC) + 1, INT_MAX);
	int i;

	for (i = 0; i < SLOTS && place->pending[i].token; i++)
		;
	if (WARN_ON_ONCE(i == SLOTS))
		return;
	place->pending[i] = (struct pending) {
		.token = token,
		.lapses = time,
		.due = jiffies + msecs_to_jiffies(ms) + 1,
		.lent = *lent,
	};
	arm(place);
}

static void forget(struct place *place, u64 token)
{
	int i;

	for (i = 0; i < SLOTS; i++)
		if (place->pending[i].token == token)
			over(&place->pending[i]);
}

static void sender(struct head *head, u64 who, u64 generation, const u64 measurement[4])
{
	head->sender = who;
	head->generation = generation;
	memcpy(head->measurement, measurement, sizeof(head->measurement));
}

/* Has a message at hand. -EAGAIN: there is none, or no channel yet. -EPIPE: nor will there be. */
static int look(struct place *place)
{
	struct arm_smccc_1_2_regs x;
	int ret;

	if (place->there)
		return 0;
	ret = connect(place);
	if (ret)
		return ret == -ENOTCONN ? -EAGAIN : ret;
	ret = rpc_call(RPC_RECEIVE, place->handle, virt_to_phys(place->in), MOST_BYTES, 0, &x);
	if (ret == -EAGAIN)
		arm(place);
	if (ret == -EPIPE)
		return end_of(place);
	if (ret)
		return ret;
	place->head = (struct head) {
		.kind = x.a1 & 0xFF,
		.bytes = min_t(u64, x.a1 >> 32, MOST_BYTES),
		.token = x.a2,
		.time = x.a3,
		.more = x.a1 >> 8 & 1,
	};
	sender(&place->head, x.a4, x.a5, (u64[]){ x.a6, x.a7, x.a8, x.a9 });
	if (place->head.kind == KIND_REPLY || place->head.kind == KIND_LAPSED)
		forget(place, place->head.token);
	place->there = true;
	return 0;
}

static const struct lent nothing;

/* Until the doorbell has rung since `seen`, or a signal. */
static int wait_for_bell(struct file *file, int seen)
{
	if (file->f_flags & O_NONBLOCK)
		return -EAGAIN;
	return wait_event_interruptible(bell, atomic_read(&rings) != seen);
}

static ssize_t take(struct place *place, char __user *to)
{
	int ret = look(place);

	if (ret)
		return ret == -EPIPE ? 0 : ret;
	if (copy_to_user(to, &place->head, sizeof(place->head)) ||
	    copy_to_user(to + sizeof(place->head), place->in, place->head.bytes))
		return -EFAULT;
	place->there = false;
	return sizeof(place->head) + place->head.bytes;
}

static ssize_t rpc_read(struct file *file, char __user *to, size_t room, loff_t *pos)
{
	struct place *place = file->private_data;

	if (room < sizeof(struct head) + MOST_BYTES)
		return -EINVAL;
	for (;;) {
		/* Before the look: what rings after it is not missed. */
		int seen = atomic_read(&rings);
		ssize_t ret;

		if (mutex_lock_interruptible(&place->lock))
			return -ERESTARTSYS;
		ret = take(place, to);
		mutex_unlock(&place->lock);
		if (ret != -EAGAIN)
			return ret;
		ret = wait_for_bell(file, seen);
		if (ret)
			return ret;
	}
}

/* Sends what `from` says. The token, of a call; which has then what goes with it. */
static int send(struct place *place, struct head *head, const char __user *from, const struct lent *lent)
{
	static const u32 functions[] = { 0, RPC_CALL, RPC_REPLY, RPC_NOTICE };
	struct arm_smccc_1_2_regs x;
	int seen = atomic_read(&rings);
	int ret = connect(place);

	if (ret)
		return ret;
	if (copy_from_user(place->out, from, head->bytes))
		return -EFAULT;
	x = (struct arm_smccc_1_2_regs) {
		.a0 = lent->pages ? RPC_CALL_WITH : functions[head->kind],
		.a1 = place->handle,
		.a2 = virt_to_phys(place->out),
		.a3 = head->bytes,
		.a4 = head->kind == KIND_CALL ? head->time : head->token,
		.a5 = lent->loan,
	};
	ret = rpc_hvc(&x);
	place->full = ret == -EAGAIN;
	place->full_at = seen;
	if (ret == -EPIPE)
		return end_of(place);
	if (!ret && head->kind == KIND_CALL) {
		head->token = x.a1;
		note(place, head->token, head->time, lent);
	}
	return ret;
}

static ssize_t rpc_write(struct file *file, const char __user *from, size_t bytes, loff_t *pos)
{
	struct place *place = file->private_data;
	struct head head;

	if (bytes < sizeof(head))
		return -EINVAL;
	if (copy_from_user(&head, from, sizeof(head)))
		return -EFAULT;
	if (head.bytes > MOST_BYTES || bytes - sizeof(head) != head.bytes ||
	    (head.kind != KIND_REPLY && head.kind != KIND_NOTICE))
		return -EINVAL;
	for (;;) {
		int seen = atomic_read(&rings);
		int ret;

		if (mutex_lock_interruptible(&place->lock))
			return -ERESTARTSYS;
		ret = send(place, &head, from + sizeof(head), &nothing);
		mutex_unlock(&place->lock);
		if (ret != -EAGAIN)
			return ret ? ret : bytes;
		ret = wait_for_bell(file, seen);
		if (ret)
			return ret;
	}
}

/* As on the host: does not wait for room. */
static int ioctl_call(struct place *place, struct head __user *arg)
{
	struct head head;
	int ret;

	if (copy_from_user(&head, arg, sizeof(head)))
		return -EFAULT;
	if (head.kind != KIND_CALL || head.bytes > MOST_BYTES)
		return -EINVAL;
	ret = send(place, &head, (char __user *)(arg + 1), &nothing);
	if (ret)
		return ret;
	return copy_to_user(arg, &head, sizeof(head)) ? -EFAULT : 0;
}

static int ioctl_call_with(struct place *place, struct call_with __user *arg)
{
	struct call_with with;
	struct lent lent = { };
	int ret;

	if (copy_from_user(&with, arg, sizeof(with)))
		return -EFAULT;
	if (with.head.kind != KIND_CALL || with.head.bytes > MOST_BYTES)
		return -EINVAL;
	ret = connect(place);
	if (!ret)
		ret = rpc_lend(&lent, place->handle, u64_to_user_ptr(with.from), with.bytes);
	if (ret)
		return ret == -EPIPE ? end_of(place) : ret;
	ret = send(place, &with.head, (char __user *)(arg + 1), &lent);
	if (ret) {
		rpc_take_back(&lent);
		return ret;
	}
	return copy_to_user(&arg->head, &with.head, sizeof(with.head)) ? -EFAULT : 0;
}

static int ioctl_cancel(struct place *place, u64 __user *arg)
{
	struct arm_smccc_1_2_regs x;
	u64 token;
	int ret;

	if (get_user(token, arg))
		return -EFAULT;
	/* The answer may have come already, as far as the hypervisor is concerned. */
	if (place->there && token && place->head.token == token && place->head.kind == KIND_REPLY) {
		place->there = false;
		return 0;
	}
	ret = connect(place);
	if (ret)
		return ret;
	ret = rpc_call(RPC_CANCEL, place->handle, token, 0, 0, &x);
	if (ret == -EPIPE)
		return end_of(place);
	if (!ret)
		forget(place, token);
	return ret;
}

static int ioctl_peer(struct place *place, struct head __user *arg)
{
	struct arm_smccc_1_2_regs x;
	struct head head = { };
	int ret = connect(place);

	if (ret)
		return ret;
	ret = rpc_call(RPC_PEER, place->handle, 0, 0, 0, &x);
	if (ret == -EPIPE)
		return end_of(place);
	if (ret)
		return ret;
	sender(&head, x.a1, x.a2, (u64[]){ x.a3, x.a4, x.a5, x.a6 });
	return copy_to_user(arg, &head, sizeof(head)) ? -EFAULT : 0;
}

static long rpc_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct place *place = file->private_data;
	void __user *at = (void __user *)arg;
	long ret;

	if (mutex_lock_interruptible(&place->lock))
		return -ERESTARTSYS;
	switch (cmd) {
	case IOCTL_CALL:
		ret = ioctl_call(place, at);
		break;
	case IOCTL_CALL_WITH:
		ret = ioctl_call_with(place, at);
		break;
	case IOCTL_CANCEL:
		ret = ioctl_cancel(place, at);
		break;
	case IOCTL_PEER:
		ret = ioctl_peer(place, at);
		break;
	default:
		ret = -ENOTTY;
	}
	mutex_unlock(&place->lock);
	return ret;
}

static __poll_t rpc_poll(struct file *file, poll_table *table)
{
	struct place *place = file->private_data;
	__poll_t events = 0;
	int ret;

	poll_wait(file, &bell, table);
	mutex_lock(&place->lock);
	ret = look(place);
	if (!ret)
		events |= EPOLLIN | EPOLLRDNORM;
	else if (ret == -EPIPE)
		events |= EPOLLIN | EPOLLRDNORM | EPOLLHUP;
	if (place->handle && (!place->full || atomic_read(&rings) != place->full_at))
		events |= EPOLLOUT | EPOLLWRNORM;
	mutex_unlock(&place->lock);
	return events;
}

static int rpc_open(struct inode *inode, struct file *file)
{
	struct place *place = container_of(file->private_data, struct place, misc);
	struct arm_smccc_1_2_regs x;

	if (test_and_set_bit_lock(0, &place->taken))
		return -EBUSY;
	/* A peer that went when nobody had the file is not this program's, nor what it has left. */
	if (place->handle && rpc_call(RPC_PEER, place->handle, 0, 0, 0, &x) == -EPIPE) {
		end_of(place);
		place->there = false;
	}
	place->over = false;
	place->full = false;
	file->private_data = place;
	return stream_open(inode, file);
}

static int rpc_release(struct inode *inode, struct file *file)
{
	struct place *place = file->private_data;
	struct arm_smccc_1_2_regs x;
	int i;

	/* The next program gets no answers that are not its own. */
	for (i = 0; i < SLOTS; i++) {
		if (place->pending[i].token && place->handle)
			rpc_call(RPC_CANCEL, place->handle, place->pending[i].token, 0, 0, &x);
		over(&place->pending[i]);
	}
	if (place->head.kind == KIND_REPLY || place->head.kind == KIND_LAPSED)
		place->there = false;
	timer_delete_sync(&place->timer);
	clear_bit_unlock(0, &place->taken);
	return 0;
}

const struct file_operations rpc_fops = {
	.owner = THIS_MODULE,
	.open = rpc_open,
	.read = rpc_read,
	.write = rpc_write,
	.poll = rpc_poll,
	.unlocked_ioctl = rpc_ioctl,
	.release = rpc_release,
};
