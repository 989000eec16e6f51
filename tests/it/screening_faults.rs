//! Classifiers that hang, panic, give what is no number or fail: the policy for failures holds within its time, and
//! tenants who are not screened notice nothing.

use crate::support::{
    house::{House, Plan, chat},
    scripted::{Behaviour, Scripted},
};
use berthd::{
    classify::{Classifier, Factory, Limits, Model, Pool, Runtime, Spec},
    config::Task,
    pipeline::{
        Live,
        count::Counters,
        screening::{Judge, Models, Screening},
    },
    screen::{Inspector, Rules},
};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::time::Instant;

/// What a classifier does wrong.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// It takes two seconds for each batch.
    Slow,
    Panics,
    NotANumber,
    Fails,
    /// It cannot be loaded.
    Absent,
}

const FAULTS: [Fault; 5] =
    [Fault::Slow, Fault::Panics, Fault::NotANumber, Fault::Fails, Fault::Absent];

struct Faulty(Fault);

impl Classifier for Faulty {
    #[expect(clippy::disallowed_methods, reason = "the wait is the fault that is played")]
    fn run(&mut self, windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, String> {
        match self.0 {
            Fault::Slow => {
                std::thread::sleep(Duration::from_secs(2));
                Ok(vec![vec![-9.0]; windows.len()])
            }
            Fault::Panics => panic!("a fault for the test"),
            Fault::NotANumber => Ok(vec![vec![f32::NAN]; windows.len()]),
            Fault::Fails | Fault::Absent => Err("a fault for the test".to_owned()),
        }
    }
}

fn judge(fault: Fault) -> Judge {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/injection-a");
    let spec = Spec { folder, runtime: Runtime::Candle, ..Spec::default() };
    let model = Arc::new(Model::load(&spec, Err("not asked for")).unwrap());
    let factory: Factory = Arc::new(move || match fault {
        Fault::Absent => Err("the file is gone".to_owned()),
        fault => Ok(Box::new(Faulty(fault)) as Box<dyn Classifier>),
    });
    let limits = Limits {
        threads: 1,
        waiting_max: 4,
        batch_max: 8,
        failures_max: 5,
        rest: Duration::from_secs(10),
    };
    let pool = Pool::start(factory, "faulty", limits).unwrap();
    Judge::new("injection-a", Task::Input, model, pool)
}

/// A house whose first stage has this fault; tenant `a` is screened, `b` is not.
async fn house(server: &Scripted, fault: Fault, on_failure: &str) -> House {
    let plan = Plan::new().tenant("b", "").server("s", server.addr, "max_running = 100").gpu(&format!(
        "enabled = false\n[screen]\nown_models = false\nbudget_s = 0.2\non_failure = \"{on_failure}\"\n\
         [[screen.policies]]\nname = \"p\"\ntenants = [\"a\"]\ninput = {{ mode = \"refuse\" }}\n"
    ));
    let house = House::open(&plan).await;
    let settings = house.broker.live.load().settings.clone();
    let models = Models::of(judge(fault));
    let screening = Screening::with(&settings.screen, models, Inspector::new(Rules::empty()));
    let live = Live { screening: Arc::new(screening), ..Live::new(settings, Counters::default()) };
    house.broker.live.store(Arc::new(live));
    house
}

#[cfg(feature = "candle")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_classifier_does_the_policy_holds_and_others_notice_nothing() {
    let server = Scripted::start(Behaviour::ok()).await;
    for fault in FAULTS {
        for (on_failure, status) in [("open", 200), ("closed", 503)] {
            let house = house(&server, fault, on_failure).await;
            let mut worst = Duration::ZERO;
            for number in 0..8 {
                let text = format!(
                    "Please tell me the way to platform {number}, the one by the old clock tower."
                );
                let begun = Instant::now();
                let reply = house.ask(&chat("scripted", &text, false)).await;
                worst = worst.max(begun.elapsed());
                assert_eq!(reply.status, status, "{fault:?} {on_failure} {number}");
                let begun = Instant::now();
                let bystander = house.ask_as("b", "", &chat("scripted", &text, false)).await;
                assert_eq!(bystander.status, 200, "{fault:?}");
                assert!(
                    begun.elapsed() < Duration::from_secs(1),
                    "{fault:?}: the bystander waited"
                );
            }
            println!(
                "{fault:?}, {on_failure}: {status}, longest answer {:.0} ms",
                worst.as_secs_f64() * 1e3
            );
            // The budget is a fifth of a second; the rest is this machine's.
            assert!(worst < Duration::from_millis(1500), "{fault:?}: {worst:?}");
            let told = house.status();
            let model = &told["screening"]["models"][0];
            assert!(model["failures"].as_u64().unwrap() > 0, "{fault:?}: {model}");
            assert_eq!(model["state"], "resting", "{fault:?}: {model}");
            assert_eq!(
                house.metric(&["berthd_classifier_up", "injection-a"]),
                Some(0.0),
                "{fault:?}"
            );
            house.close().await;
        }
    }
}
