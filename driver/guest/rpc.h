/* SPDX-License-Identifier: GPL-2.0-only */
/* What the files of gzvm-rpc.ko have in common. */

#ifndef GZVM_RPC_H
#define GZVM_RPC_H

#include <linux/arm-smccc.h>
#include <linux/interrupt.h>
#include <linux/miscdevice.h>
#include <linux/mutex.h>
#include <linux/timer.h>
#include <linux/types.h>

/* Of the hypervisor's calls (docs/abi.md, "RPC") the one that more than one of them makes. */
#define RPC_PEER	0xC600F012

#define MOST_BYTES	4096
#define SLOTS		4

/* In front of each message that is read or written. */
struct head {
	u32 kind;
	u32 bytes;
	u64 token;
	u64 time;
	u32 sender;
	u32 more;
	u64 generation;
	u64 measurement[4];
};
static_assert(sizeof(struct head) == 72);

/* Memory that goes with a call. No pages: none. */
struct lent {
	void *pages;
	size_t bytes;
	u64 loan;
};

/* A call under way, of whoever has the file open. Token 0: none. */
struct pending {
	u64 token;
	bool lapses;
	unsigned long due;
	struct lent lent;
};

/* Where there may be a channel. */
struct place {
	struct miscdevice misc;
	char name[48];
	char node[48];
	u32 port;
	unsigned long taken;
	/* Of all below. */
	struct mutex lock;
	/* 0: there is no channel yet. */
	u64 handle;
	/* A message that was received and not read yet: its head, and what it says at `in`. */
	bool there;
	struct head head;
	void *in;
	void *out;
	/* Of the open file: it is at its end; there was no room for a message after so many rings. */
	bool over;
	bool full;
	int full_at;
	struct pending pending[SLOTS];
	struct timer_list timer;
};

/* Calls the hypervisor with these registers, and replaces them with its answer. 0 or an error. */
int rpc_hvc(struct arm_smccc_1_2_regs *x);
int rpc_call(u32 function, u64 x1, u64 x2, u64 x3, u64 x4, struct arm_smccc_1_2_regs *x);

/* The doorbell. */
irqreturn_t rpc_rung(int number, void *data);

/* A deadline has come, which the hypervisor tells only to who looks. */
void rpc_due(struct timer_list *timer);

/* Of each place. */
extern const struct file_operations rpc_fops;

/* Lends what user space has at `from` to the peer of a channel. */
int rpc_lend(struct lent *lent, u64 channel, const void __user *from, size_t bytes);

/* The call is over. */
void rpc_take_back(struct lent *lent);

#endif
